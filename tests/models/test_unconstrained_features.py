"""The unconstrained feature model: what L-BFGS finds against the closed forms, for four losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from assay.losses.focal import FocalLoss
from assay.losses.rescaled_mse import RescaledMSELoss
from assay.models.unconstrained_features import UnconstrainedFeatures, collapsed_minimum

K, N, D, DECAY = 4, 6, 7, 5e-3
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": torch.nn.CrossEntropyLoss(),
    "label-smoothing": torch.nn.CrossEntropyLoss(label_smoothing=0.1),
    "focal-1": FocalLoss(1.0),
    "focal-3": FocalLoss(3.0),
}
# the paper's specification gives these for lW = lH = 5e-3, K = 4, n = 6
REGRESSION = {
    "cross-entropy": (4.36500, 0.19781481),
    "label-smoothing": (3.17168, 0.47290421),
    "focal-1": (2.93008, 0.12817062),
    "focal-3": (1.84736, 0.08069713),
}


def _fitted(
    loss: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    decays: tuple[float, float, float] = (DECAY, DECAY, 0.0),
    bias: bool = True,
) -> tuple[UnconstrainedFeatures, float]:
    model = UnconstrainedFeatures(K, N, D, bias=bias, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=5000, tolerance_grad=1e-11, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = model.objective(loss, *decays)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return model, model.objective(loss, *decays).item()


def _scalar_losses() -> dict[str, Callable[[float], float]]:
    """L(c (e_1 - 1/K), 1) from the losses' definitions, in NumPy."""

    def p(c: float) -> float:
        return math.exp(c) / (math.exp(c) + K - 1)

    def smoothed(c: float) -> float:
        wrong = (1 - p(c)) / (K - 1)
        return -0.9 * math.log(p(c)) - 0.1 / K * (math.log(p(c)) + (K - 1) * math.log(wrong))

    return {
        "cross-entropy": lambda c: -math.log(p(c)),
        "label-smoothing": smoothed,
        "focal-1": lambda c: -(1 - p(c)) * math.log(p(c)),
        "focal-3": lambda c: -((1 - p(c)) ** 3) * math.log(p(c)),
    }


@pytest.mark.parametrize("name", list(LOSSES))
def test_scalar_reduction_against_scipy_and_known_values(name: str) -> None:
    """The predicted scale and minimum would not be those of the paper's one-scalar problem."""
    slope = math.sqrt(N * DECAY * DECAY) * (K - 1)
    scalar = _scalar_losses()[name]
    expected = minimize_scalar(
        lambda c: scalar(c) + slope * c, bounds=(0, 20), method="bounded", options={"xatol": 1e-12}
    )
    found = collapsed_minimum(LOSSES[name], K, N, DECAY, DECAY)
    assert found.value == pytest.approx(expected.fun, abs=1e-12)
    assert found.scale == pytest.approx(expected.x, abs=1e-6)
    assert (found.scale, found.value) == pytest.approx(REGRESSION[name], abs=6e-6)
    assert found.value == pytest.approx(REGRESSION[name][1], abs=6e-9)


@pytest.mark.parametrize("name", list(LOSSES))
def test_optimised_model_is_the_predicted_collapse(name: str) -> None:
    """Training the model would end elsewhere: not at f*, not at a simplex ETF, not self-dual, or not collapsed."""
    model, value = _fitted(LOSSES[name], seed=0)
    found = collapsed_minimum(LOSSES[name], K, N, DECAY, DECAY)
    assert value == pytest.approx(found.value, abs=1e-8)
    scores = model().detach()
    scores = scores - scores.mean(1, keepdim=True)
    simplex = F.one_hot(model.targets, K).double() - 1 / K
    torch.testing.assert_close(scores, found.scale * simplex, rtol=0, atol=1e-4 * found.scale)
    means = model.features.detach().view(K, N, D).mean(1)
    torch.testing.assert_close(means.repeat_interleave(N, 0), model.features.detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(means, model.head.weight.detach() / math.sqrt(N), rtol=0, atol=1e-4)


def _mse_closed_form(lw: float, lh: float, lb: float) -> float:
    """f* for 1/(2N) ||WH + b - Y||^2 with bias: the closed form of arXiv:2203.01238's setting, from its specification."""
    s = math.sqrt(N * lw * lh)
    a = max(0.0, 1 - K * s)
    if lb / (1 + lb) <= K * s:
        m, beta = 0.0, 1 / (K * (1 + lb))
    else:
        m, beta = 1 - K * s * (1 + 1 / lb), s / lb
    r = 1 - m - K * beta
    return ((K - 1) * (1 - a) ** 2 + r**2) / (2 * K) + s * ((K - 1) * a + m) + lb * K * beta**2 / 2


@pytest.mark.parametrize("decays", [(5e-3, 5e-3, 0.0), (5e-3, 1e-2, 1e-2), (1e-3, 2e-3, 0.5), (0.2, 0.2, 0.1)])
def test_squared_loss_against_its_closed_form(decays: tuple[float, float, float]) -> None:
    """The price of a common offset, which only squared loss pays, would be wrong in one of its branches."""
    half_sum = lambda z, y: K / 2 * RescaledMSELoss(target=1.0)(z, y)  # noqa: E731
    assert collapsed_minimum(half_sum, K, N, *decays).value == pytest.approx(_mse_closed_form(*decays), abs=1e-9)


@pytest.mark.parametrize("decays", [(DECAY, DECAY, 0.0), (DECAY, DECAY, 0.5)])
def test_rescaled_squared_loss_ends_at_the_prediction(decays: tuple[float, float, float]) -> None:
    """The study's fourth loss (M = 15) would not reach its global minimum."""
    loss = RescaledMSELoss(target=15.0)
    _, value = _fitted(loss, 1, decays)
    assert value == pytest.approx(collapsed_minimum(loss, K, N, *decays).value, abs=1e-7)


def test_strong_decay_collapses_everything_to_zero() -> None:
    """With K s >= 1 the squared loss has its only minimiser at W = H = 0."""
    loss = lambda z, y: K / 2 * RescaledMSELoss(target=1.0)(z, y)  # noqa: E731
    assert collapsed_minimum(loss, K, N, 0.2, 0.2).scale == 0
    model, _ = _fitted(loss, 2, (0.2, 0.2, 0.0))
    assert float(model.head.weight.detach().abs().max()) < 1e-6


def test_objective_is_the_equation() -> None:
    """A decay would be missing, doubled, or on the wrong matrix."""
    model = UnconstrainedFeatures(3, 2, 4)
    weight, bias, features = (t.detach().numpy() for t in (model.head.weight, model.head.bias, model.features))
    scores = features @ weight.T + bias
    nll = np.log(np.exp(scores).sum(1)) - scores[np.arange(6), [0, 0, 1, 1, 2, 2]]
    expected = nll.mean() + 0.1 / 2 * (weight**2).sum() + 0.2 / 2 * (features**2).sum() + 0.3 / 2 * (bias**2).sum()
    assert float(model.objective(F.cross_entropy, 0.1, 0.2, 0.3)) == pytest.approx(expected, rel=1e-12)


def test_start_follows_the_generator_and_bias_can_be_left_out() -> None:
    """Starts of different seeds would be the same, or drawn from the global generator."""
    before = torch.get_rng_state()
    first, second = (UnconstrainedFeatures(3, 2, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert not torch.equal(first.features, second.features)
    assert torch.equal(torch.get_rng_state(), before)
    assert UnconstrainedFeatures(3, 2, 4, bias=False).head.bias is None


def test_refuses_sizes_and_decays_out_of_range() -> None:
    """A zero decay has no minimum, and one class no collapse."""
    with pytest.raises(ValueError, match="num_classes >= 2"):
        UnconstrainedFeatures(1, 2, 3)
    with pytest.raises(ValueError, match="weight_decay > 0"):
        collapsed_minimum(F.cross_entropy, 4, 6, 0.0, 0.1)
