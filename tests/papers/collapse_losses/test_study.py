"""What the study of collapse-losses adds of its own: the arm on unconstrained features, and fair grids."""

from __future__ import annotations

import pytest
import torch

from assay.lab.experiment import Experiment
from assay.models.unconstrained_features import UnconstrainedFeatures
from assay.papers.collapse_losses.study import LOSSES, study, unconstrained_features
from assay.streams import Streams

SIZES = {"num_classes": 3, "samples_per_class": 2, "features": 4, "decay": 5e-3}


@pytest.mark.parametrize("loss", list(LOSSES.values()))
def test_unconstrained_features_end_at_the_prediction(loss: str) -> None:
    """The arm would report a gap where the theorem says that there is none."""
    metrics = unconstrained_features(Streams("test", 0), loss, **SIZES)  # type: ignore[arg-type]
    assert abs(metrics["objective_gap"]) < 1e-7 and metrics["score_deviation"] < 1e-3


def test_unconstrained_features_notice_a_wrong_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arm would report no gap whatever the optimiser does: without a step it must report a large one."""
    monkeypatch.setattr(torch.optim.LBFGS, "step", lambda self, closure: closure())
    metrics = unconstrained_features(Streams("test", 0), "cross-entropy", **SIZES)  # type: ignore[arg-type]
    assert metrics["objective_gap"] > 0.01 and metrics["score_deviation"] > 0.1


def test_start_is_the_seeds() -> None:
    """All seeds would start from one point, or from the global generator."""
    before = torch.get_rng_state()
    starts = [
        UnconstrainedFeatures(3, 2, 4, generator=Streams("test", seed).torch("init")).features for seed in (0, 0, 1)
    ]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_of_a_cell_differ_in_loss_and_grid_only(scale: str) -> None:
    """A loss would win by another budget, network, decay or number of tuning trials."""
    arms = study(scale).arms
    cells = {name.partition("/")[0] for name in arms} - {"features"}
    assert cells >= {"narrow-brief", "wide-long"}
    for cell in cells:
        experiments = [arms[f"{cell}/{name}"] for name in LOSSES]
        assert all(isinstance(e, Experiment) for e in experiments)
        plain = [e.but(loss=None, tune={}).describe() for e in experiments]
        assert all(p == plain[0] for p in plain)
        assert len({len(e.tune["optimizer.lr"]) for e in experiments}) == 1  # type: ignore[attr-defined]
