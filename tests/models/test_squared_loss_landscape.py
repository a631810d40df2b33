"""Squared loss on unconstrained features: the minimum against optimisers and other solvers, the saddle against a Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import hessian

from assay.errors import InvalidInput
from assay.losses.rescaled_mse import rescaled_mse_loss
from assay.models.collapse_minima import ufm_minimum
from assay.models.squared_loss_landscape import origin_curvature, squared_loss_minimum
from assay.models.unconstrained_features import UnconstrainedFeatures, collapsed_minimum

K, n, d = 4, 3, 5
# (lW, lH, lb): free bias, small and large decay of the bias (both branches), none, unequal decays, too much decay
SETTINGS = [
    (5e-3, 5e-3, 0.0),
    (5e-3, 5e-3, 0.02),
    (5e-3, 5e-3, 0.3),
    (5e-3, 5e-3, None),
    (1e-3, 4e-2, 0.05),
    (0.2, 0.2, 0.1),
    (0.2, 0.2, None),
]


def _half_squared(scores: Tensor, targets: Tensor) -> Tensor:
    return scores.shape[1] / 2 * rescaled_mse_loss(scores, targets, target=1.0)


def _trained(
    weight_decay: float, feature_decay: float, bias_decay: float | None
) -> tuple[UnconstrainedFeatures, float]:
    model = UnconstrainedFeatures(K, n, d, bias=bias_decay is not None)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = model.objective(_half_squared, weight_decay, feature_decay, bias_decay or 0.0)
        value.backward()
        return value

    optimizer.step(closure)
    return model, closure().item()


@pytest.mark.parametrize(("weight_decay", "feature_decay", "bias_decay"), SETTINGS)
def test_is_where_optimisation_ends(weight_decay: float, feature_decay: float, bias_decay: float | None) -> None:
    """Value, scores, bias or the features' form would not be the minimum's in one of the branches."""
    expected = squared_loss_minimum(K, n, weight_decay, feature_decay, bias_decay)
    model, value = _trained(weight_decay, feature_decay, bias_decay)
    assert value == pytest.approx(expected.value, abs=1e-9)
    with torch.no_grad():
        W, H = model.head.weight, model.features
        bias = model.head.bias if bias_decay is not None else torch.zeros(K, dtype=W.dtype)
        torch.testing.assert_close(H @ W.T, expected.class_scores[model.targets], rtol=0, atol=2e-4)
        torch.testing.assert_close(bias, torch.full_like(bias, expected.bias), rtol=0, atol=2e-4)
        duals = (weight_decay / (n * feature_decay)) ** 0.5 * W[model.targets]
        torch.testing.assert_close(H, duals, rtol=0, atol=2e-3)


@pytest.mark.parametrize("bias_decay", [0.0, 0.01, 0.05, 0.3, 5.0])
def test_agrees_with_the_solver_for_any_loss(bias_decay: float) -> None:
    """The closed form would not be the numerical minimum over scale and offset."""
    expected = collapsed_minimum(_half_squared, K, n, 5e-3, 5e-3, bias_decay)
    found = squared_loss_minimum(K, n, 5e-3, 5e-3, bias_decay)
    assert found.value == pytest.approx(expected.value, abs=1e-10)
    assert (found.class_scores[0, 0] - found.class_scores[0, 1]).item() == pytest.approx(expected.scale, abs=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_agrees_with_the_two_cases_without_decay_of_the_bias(bias: bool) -> None:
    """Two functions of the library would contradict each other."""
    value, Z = ufm_minimum("mse", K, n, 5e-3, 2e-2, bias=bias)
    found = squared_loss_minimum(K, n, 5e-3, 2e-2, 0.0 if bias else None)
    assert found.value == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(found.class_scores, Z)


def test_branches_meet() -> None:
    """The minimum would jump where the bias's decay passes the price of a common offset through W and H."""
    c = (n * 5e-3 * 5e-3) ** 0.5
    edge = K * c / (1 - K * c)
    below, above = (squared_loss_minimum(K, n, 5e-3, 5e-3, edge * (1 + e)) for e in (-1e-9, 1e-9))
    assert below.value == pytest.approx(above.value, abs=1e-10)
    assert below.bias == pytest.approx(above.bias, abs=1e-8)


@pytest.mark.parametrize(("weight_decay", "feature_decay"), [(5e-3, 5e-3), (1e-3, 0.1), (0.2, 0.2)])
@pytest.mark.parametrize("bias", [True, False])
def test_saddle_at_the_origin_has_the_hessians_least_eigenvalue(
    weight_decay: float, feature_decay: float, bias: bool
) -> None:
    """The closed form would miss the direction of descent at W = H = 0, with the bias at its optimum or without one."""
    targets = torch.arange(K).repeat_interleave(n)
    b = 1 / K if bias else 0.0

    def objective(flat: Tensor) -> Tensor:
        W, H = flat[: K * d].view(K, d), flat[K * d :].view(K * n, d)
        decay = weight_decay / 2 * W.square().sum() + feature_decay / 2 * H.square().sum()
        return _half_squared(H @ W.T + b, targets) + decay

    found = torch.linalg.eigvalsh(hessian(objective)(torch.zeros(K * d + K * n * d, dtype=torch.float64)))[0].item()
    assert origin_curvature(K, n, weight_decay, feature_decay) == pytest.approx(found, abs=1e-12)
    zero = not squared_loss_minimum(K, n, weight_decay, feature_decay).class_scores.any()
    assert zero == (found >= 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 3, 0.1, 0.1), "K >= 2"), ((3, 3, 0.0, 0.1), "decays above 0"), ((3, 3, 0.1, 0.1, -1.0), "bias_decay")],
)
def test_refuses_numbers_out_of_range(arguments: tuple[float, ...], message: str) -> None:
    """A formula would be evaluated where it does not hold."""
    with pytest.raises(InvalidInput, match=message):
        squared_loss_minimum(*arguments)  # type: ignore[arg-type]
