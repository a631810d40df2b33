"""Studies know where each hyper-parameter comes from."""

from __future__ import annotations

import pytest

from assay.errors import InvalidInput, UnknownName
from assay.lab.expectations import greater
from assay.lab.experiment import Experiment
from assay.lab.study import Study

BASE = Experiment(data="digits", model="mlp", optimizer="sgd(lr=0.1)", epochs=2)


def test_a_missing_source_is_named():
    """Every hyper-parameter needs a source; the missing ones must be listed by arm."""
    study = Study("claim", {"a": BASE}, sources={"data": "Section 5", "model": "Section 5", "optimizer.lr": "tuned"})
    missing = study.unsourced()
    assert "a: epochs" in missing
    assert not any("optimizer" in name or "data" in name for name in missing)


def test_an_arm_can_have_a_source_of_its_own():
    """A source for "arm: name" goes before one for "name", and arguments' sources are joined to their part's."""
    sources = {"optimizer": "Section 1", "b: optimizer": "Section 2", "optimizer.lr": "tuned"}
    study = Study("claim", {"a": BASE, "b": BASE.but(epochs=3)}, sources=sources)
    assert study.source("a", "optimizer") == "Section 1; optimizer.lr: tuned"
    assert study.source("b", "optimizer") == "Section 2; optimizer.lr: tuned"


@pytest.mark.parametrize("bad", [{"arms": {}}, {"seeds": 0}, {"threads": 0}, {"tune_seeds": -1}])
def test_a_study_that_cannot_run_is_refused(bad):
    """No arms, no seeds or no threads must be an error before anything runs."""
    with pytest.raises(InvalidInput):
        Study(**{"claim": "c", "arms": {"a": BASE}, **bad})


def test_an_expectation_on_an_arm_that_is_not_there_is_refused():
    """A misspelt arm must be found before hours of training, not after."""
    with pytest.raises(UnknownName, match="baseline"):
        Study("claim", {"baseline": BASE, "method": BASE}, expects=[greater("test_accuracy", "method", "baselin")])
