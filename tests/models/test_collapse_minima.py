"""Closed forms of collapsed minima against an optimiser, numbers of the review's specification, and a numeric solver."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.models.collapse_minima import layer_peeled_minimum, ufm_minimum
from assay.models.unconstrained_features import UnconstrainedFeatures, collapsed_minimum

SETTINGS = [("cross-entropy", True), ("cross-entropy", False), ("mse", True), ("mse", False)]


def half_squared(scores: Tensor, targets: Tensor) -> Tensor:
    """1/(2N) sum of |z - e_y|^2, from its definition."""
    return (scores - F.one_hot(targets, scores.shape[1])).square().sum(dim=1).mean() / 2


LOSSES = {"cross-entropy": F.cross_entropy, "mse": half_squared}


def fitted(loss: str, bias: bool, decays: tuple[float, float] = (5e-3, 5e-3), seed: int = 0) -> UnconstrainedFeatures:
    """A model that L-BFGS has minimised from a random start."""
    model = UnconstrainedFeatures(4, 10, 8, bias=bias, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=3000, tolerance_grad=1e-11, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = model.objective(LOSSES[loss], *decays)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(("loss", "bias"), SETTINGS)
def test_an_optimiser_ends_there(loss: str, bias: bool) -> None:
    """The value or the scores are not those of the global minimum that L-BFGS finds from a random start."""
    model, (value, Z) = fitted(loss, bias, (5e-3, 2e-3)), ufm_minimum(loss, 4, 10, 5e-3, 2e-3, bias)
    assert model.objective(LOSSES[loss], 5e-3, 2e-3).item() == pytest.approx(value, abs=1e-8)
    torch.testing.assert_close((model.features @ model.head.weight.T).detach(), Z[model.targets], rtol=0, atol=1e-3)
    squares = model.head.weight.square().sum() / (model.features.square().sum() / 10)
    assert squares.item() == pytest.approx(10 * 2e-3 / 5e-3, rel=1e-3), "norms are not balanced"


@pytest.mark.parametrize(
    ("loss", "bias", "expected"),
    [("mse", False, 0.06124555), ("mse", True, 0.04593416), ("cross-entropy", True, 0.24300160)],
)
def test_known_values(loss: str, bias: bool, expected: float) -> None:
    """The review's specification gives other minima for K = 4, n = 10 and decay 5e-3."""
    assert ufm_minimum(loss, 4, 10, 5e-3, 5e-3, bias)[0] == pytest.approx(expected, abs=6e-9)


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("sizes", [(2, 1, 0.1, 0.02), (7, 5, 1e-3, 3e-3), (10, 50, 5e-4, 1e-5), (5, 4, 0.3, 0.3)])
def test_agrees_with_the_numeric_solver(loss: str, sizes: tuple[int, int, float, float]) -> None:
    """With a free bias two independent ways to the minimum differ, also where decay is so strong that all is 0."""
    numeric = collapsed_minimum(LOSSES[loss], *sizes)
    value, Z = ufm_minimum(loss, *sizes)
    assert value == pytest.approx(numeric.value, abs=1e-9)
    scale = Z[0, 0].item() * sizes[0] / (sizes[0] - 1)
    assert scale == pytest.approx(numeric.scale, abs=1e-4)


@pytest.mark.parametrize(("loss", "bias"), SETTINGS)
def test_strong_decay_leaves_nothing(loss: str, bias: bool) -> None:
    """With K c >= 1 scores are not 0, or their loss is not that of knowing nothing."""
    value, Z = ufm_minimum(loss, 4, 1, 0.25, 0.25, bias)
    known_nothing = math.log(4) if loss == "cross-entropy" else (3 / 8 if bias else 1 / 2)
    assert not Z.any() and value == pytest.approx(known_nothing)


@pytest.mark.parametrize(("loss", "bias"), SETTINGS)
@pytest.mark.parametrize("bounds", [(0.5, 0.3), (2.0, 4.0)])
def test_no_bounded_scores_are_better(loss: str, bias: bool, bounds: tuple[float, float]) -> None:
    """Some W and H within the layer-peeled bounds have a lower loss, or the minimum is outside of them."""
    value, Z = layer_peeled_minimum(loss, 4, *bounds, bias=bias)
    targets, b = torch.arange(4), (1 / 4 if bias and loss == "mse" else 0.0)
    assert LOSSES[loss](Z + b, targets).item() == pytest.approx(value, abs=1e-12)
    assert torch.linalg.matrix_norm(Z, "nuc").item() <= 4 * math.sqrt(bounds[0] * bounds[1]) + 1e-9
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        W, H = (F.normalize(torch.randn(4, 5, generator=generator, dtype=torch.float64)) for _ in range(2))
        H = W if torch.rand((), generator=generator) < 0.5 else H
        scores = math.sqrt(bounds[0] * bounds[1]) * H @ W.T
        best = b if not bias or loss != "mse" else (torch.eye(4, dtype=torch.float64) - scores).mean(dim=0)
        assert LOSSES[loss](scores + best, targets).item() >= value - 1e-12


def test_refuses_what_has_no_closed_form() -> None:
    """An unknown loss or a decay of 0 gives a number."""
    with pytest.raises(ValueError, match="must be 'cross-entropy' or 'mse'"):
        ufm_minimum("focal", 4, 1, 0.1, 0.1)
    with pytest.raises(ValueError, match="decays above 0"):
        ufm_minimum("mse", 4, 1, 0.0, 0.1)
    with pytest.raises(ValueError, match="at least 2"):
        layer_peeled_minimum("mse", 1, 1.0, 1.0)
    with pytest.raises(ValueError, match="bounds above 0"):
        layer_peeled_minimum("mse", 3, 1.0, 0.0)
