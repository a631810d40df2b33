"""The command as a whole: its verbs, its errors, its exit codes."""

from __future__ import annotations

import importlib

import pytest

from assay.cli.main import VERBS


def test_the_verbs_are_these():
    """Verbs are an interface: adding or removing one has to be meant, each in a module of its own."""
    assert list(VERBS) == ["list", "show", "run", "report", "train", "bench", "data", "doctor"]
    assert all(callable(importlib.import_module(f"assay.cli.{verb}").command) for verb in VERBS)


def test_the_version_is_the_package_s(assay):
    """`assay --version` is what bug reports quote."""
    from assay import __version__

    assert assay("--version").out.strip() == f"assay {__version__}"


def test_help_names_every_verb(assay):
    """A new user starts with --help."""
    shown = assay("--help").out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lst"], "list"),
        (["show", "grokking-edg"], "grokking-edge"),
        (["run", "grokking-edge", "--scale", "huge"], "smoke, desk, paper"),
        (["run", "grokking-edge", "--seeds", "0"], "at least 1"),
        (["run", "grokking-edge", "--scale", "smoke", "--jobs", "1000"], "1000 jobs"),
        (["run", "grokking-edge", "--scale", "smoke", "--backend", "slurm"], "loky"),
        (["run", "ntk"], "planned"),
        (["train", "--rule", "mono-foward"], "mono-forward"),
        (["train", "--loss", "fokal"], "focal"),
        (["train", "--model", "mlp(widht=3)"], "width"),
        (["train", "--model", "no.such:Model"], "cannot import"),
        (["train", "--model", "mlp(width=__import__('os'))"], "literal"),
        (["train", "--epochs", "-1"], "above 0"),
        (["train", "--seeds", "0"], "at least 1"),
        (["train", "--batch-size", "-1"], "at least 0"),
        (["train", "--epochs", "1", "--samples", "5"], "exactly one"),
        (["train", "--data", "nmist"], "mnist"),
        (["train", "--probe", "neural-colapse"], "neural-collapse"),
        (["data", "nmist"], "mnist"),
        (["list", "--seam", "lossess"], "losses"),
        (["bench", "nothing"], "engine_overhead"),
        (["report", "no-such-paper"], "paper"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(assay, arguments, expected):
    """Whatever is wrong: exit code 2, one line that says what was expected, nothing written."""
    called = assay(*arguments)
    assert called.code == 2, called
    assert expected in called.err
    assert len(called.err.strip().splitlines()) == 1, called.err
    assert "Traceback" not in called.err
