"""`assay bench`."""

from __future__ import annotations

import subprocess


def test_the_benchmarks_are_listed(assay):
    """Without a name the verb lists what there is."""
    assert "engine_overhead" in assay("bench").out.split()


def test_a_failing_benchmark_is_an_error(assay, monkeypatch):
    """A benchmark that breaks must not look measured."""
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 3))
    called = assay("bench", "startup", "--quick")
    assert called.code == 2 and "exit code 3" in called.err
