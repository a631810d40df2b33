from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import StoreError
from assay.lab.evidence import load_evidence, load_summary, save_evidence
from assay.lab.record import Record, Series


def trial(**changes: Any) -> dict[str, Any]:
    """Return one stored trial."""
    record = Record({"accuracy": 0.1 + 0.2}, {"loss": Series((1.0, 2.0), (0.5, 0.25))}, resources={"seconds": 1.5})
    return {"key": "k", "arm": "a", "seed": 0, "stage": "final", **record.to_plain(), **changes}


def result(*trials: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a small result."""
    return {"protocol": 1, "paper": "p", "verdict": {"status": "holds"}, "trials": list(trials), **changes}


def strict(path: Path) -> Any:
    """Read JSON as a strict reader would: NaN and infinity are errors."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path.name}"))


def test_round_trip(tmp_path: Path) -> None:
    """Evidence that is saved and loaded would have changed."""
    made = result(trial(), trial(seed=1), claim="größer ≥ kleiner")
    save_evidence(made, tmp_path / "new" / "folder")
    assert load_evidence(tmp_path / "new" / "folder") == made


def test_the_summary_holds_no_trials_and_needs_none(tmp_path: Path) -> None:
    """The fast read would depend on the large file."""
    save_evidence(result(trial()), tmp_path)
    (tmp_path / "trials.json").write_text("not read")
    summary = load_summary(tmp_path)
    assert summary is not None
    assert "trials" not in summary
    assert summary["verdict"] == {"status": "holds"}


def test_evidence_without_trials_has_an_empty_list(tmp_path: Path) -> None:
    """A package shipped without trials could not be reported."""
    save_evidence(result(trial()), tmp_path)
    (tmp_path / "trials.json").unlink()
    loaded = load_evidence(tmp_path)
    assert loaded is not None and loaded["trials"] == []


def test_no_evidence_is_none(tmp_path: Path) -> None:
    """A paper that was never run would be an error."""
    assert load_evidence(tmp_path) is None
    assert load_summary(tmp_path / "nowhere") is None


@pytest.mark.parametrize("lost", [float("nan"), float("inf"), -float("inf"), "nan", "inf", "-inf", None])
def test_what_is_not_finite_is_null(tmp_path: Path, lost: Any) -> None:
    """A number that JSON does not know, in either of its spellings, would reach the file."""
    series = {"loss": {"steps": [1.0, 2.0], "values": [0.5, lost], "unit": "epoch"}}
    made = trial(metrics={"accuracy": lost, "loss": 1.0}, series=series, resources={"seconds": lost})
    save_evidence(result(made, resources={"seconds": lost if isinstance(lost, float) else None}), tmp_path)
    strict(tmp_path / "evidence.json")
    (stored,) = strict(tmp_path / "trials.json")
    assert stored["metrics"] == {"accuracy": None, "loss": 1.0}
    assert stored["resources"] == {"seconds": None}
    assert stored["series"]["loss"]["values"] == [0.5, None]


@settings(max_examples=30, deadline=None)
@given(length=st.integers(0, 1500))
def test_long_series_keep_both_ends_and_an_even_spread(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    """A thinned series would lose its end, its order or the match of steps and values."""
    folder = tmp_path_factory.mktemp("thin")
    steps = [float(step) for step in range(1, length + 1)]
    series = {"loss": {"steps": steps, "values": [3 * step for step in steps], "unit": "epoch"}}
    save_evidence(result(trial(series=series)), folder)
    kept = strict(folder / "trials.json")[0]["series"]["loss"]
    assert len(kept["steps"]) == min(length, 200)
    assert kept["values"] == [3 * step for step in kept["steps"]]
    if length:
        assert (kept["steps"][0], kept["steps"][-1]) == (steps[0], steps[-1])
        gaps = {later - earlier for earlier, later in zip(kept["steps"], kept["steps"][1:], strict=False)}
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_series_are_rounded_and_metrics_are_exact(tmp_path: Path) -> None:
    """A verdict judged again from stored metrics would differ from the recorded one."""
    series = {"loss": {"steps": [1.0], "values": [math.pi], "unit": "epoch"}}
    save_evidence(result(trial(metrics={"accuracy": math.pi}, series=series)), tmp_path)
    (stored,) = strict(tmp_path / "trials.json")
    assert stored["metrics"]["accuracy"] == math.pi
    assert stored["series"]["loss"]["values"] == [3.14159]


def test_saving_leaves_its_input_alone(tmp_path: Path) -> None:
    """The caller's result would be rounded behind its back."""
    made = result(trial(metrics={"accuracy": float("nan")}))
    before = json.dumps(made)
    save_evidence(made, tmp_path)
    assert json.dumps(made) == before


def test_a_failed_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would destroy the evidence of the last run, or leave litter."""
    save_evidence(result(trial(), claim="old"), tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left"):
        save_evidence(result(claim="new"), tmp_path)
    monkeypatch.undo()
    assert load_evidence(tmp_path) == result(trial(), claim="old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evidence.json", "trials.json"]


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    """A file in the folder's place would show a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        save_evidence(result(), tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evidence.json", "{", "cannot be read"),
        ("evidence.json", "[]", "holds a list, expected a dict"),
        ("evidence.json", '{"protocol": 99}', "of protocol 99"),
        ("evidence.json", "{}", "names no protocol"),
        ("evidence.json", b"\xff\xfe", "cannot be read"),
        ("trials.json", "{}", "holds a dict, expected a list"),
        ("trials.json", "[{", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    """Truncated, foreign or newer evidence would be taken for good, or end in a traceback."""
    save_evidence(result(trial()), tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StoreError, match=message) as caught:
        load_evidence(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    """Evidence under version control would change without a change."""
    for folder in ("a", "b"):
        save_evidence(result(trial(), trial(seed=1)), tmp_path / folder)
    for name in ("evidence.json", "trials.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len((tmp_path / "a" / "trials.json").read_text().splitlines()) == 4


def test_reading_needs_no_torch() -> None:
    """`assay list` would wait for torch."""
    code = "import sys, assay.lab.evidence; sys.exit(bool({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
