"""Linear contrastive networks: the population's loss against samples, its minimum against optimisers and formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.models.linear_contrastive import LinearContrastive, contrastive_minimum

SIGNAL = torch.tensor([1.44, 1.0, 0.49, 0.25], dtype=torch.float64)
NOISE = torch.tensor([0.3, 0.01, 0.2, 0.05], dtype=torch.float64)


def _trained(decay: float, depth: int, seed: int, width: int = 5) -> tuple[LinearContrastive, float]:
    generator = torch.Generator().manual_seed(seed)
    model = LinearContrastive(4, width, depth=depth, scale=0.6, generator=generator)
    M, S = torch.diag(SIGNAL), torch.diag(SIGNAL + NOISE)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=400, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.objective(M, S, decay)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, closure().item()


def test_objective_is_the_loss_in_expectation() -> None:
    """The matrix form would not be the contrastive loss: E over pairs of Gaussians, by its fourth moments."""
    model = LinearContrastive(4, 5, scale=0.5)
    M, S = torch.diag(SIGNAL), torch.diag(SIGNAL + NOISE)
    A = model.products()[-1].T @ model.products()[-1]
    alike = sum(A[i, j] * M[i, j] for i in range(4) for j in range(4))
    apart = sum(
        A[i, j] * A[k, m] * S[i, k] * S[j, m] for i in range(4) for j in range(4) for k in range(4) for m in range(4)
    )
    decay = 0.3 * sum(p.square().sum() for p in model.parameters())
    torch.testing.assert_close(model.objective(M, S, 0.3), apart - 2 * alike + decay)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_without_decay_weights_are_phi_over_phi_squared_plus_sigma_squared(depth: int) -> None:
    """The closed form would miss the paper's limit, or its value the sum of squared correlations."""
    end = contrastive_minimum(SIGNAL, NOISE, depth=depth)
    omega = SIGNAL.sqrt() / (SIGNAL + NOISE)
    torch.testing.assert_close(end.weights[-1], omega)
    torch.testing.assert_close(end.weights[0], omega ** (1 / depth))
    assert end.value == pytest.approx(-float((SIGNAL / (SIGNAL + NOISE)).square().sum()))
    small = contrastive_minimum(SIGNAL, NOISE, decay=1e-7, depth=depth)
    torch.testing.assert_close(small.weights, end.weights, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("decay", "depth"), [(0.03, 1), (0.1, 2), (0.02, 3)])
def test_no_optimiser_finds_a_lower_value(decay: float, depth: int) -> None:
    """The closed form would not be the minimum: some random start would end below it, none at it."""
    end = contrastive_minimum(SIGNAL, NOISE, decay, depth)
    runs = [_trained(decay, depth, seed) for seed in range(2)]
    values = [value for _, value in runs]
    assert min(values) == pytest.approx(end.value, abs=1e-6)
    best = runs[values.index(min(values))][0]
    torch.testing.assert_close(best.feature_weights(), end.weights, rtol=2e-3, atol=2e-3)


def test_layers_are_balanced_and_nothing_is_mixed() -> None:
    """The square-root law would hold by accident: it comes from W1 W1^T = W2^T W2 and orthogonal columns of W."""
    model, _ = _trained(0.03, 2, seed=0)
    first, second = (p.detach() for p in model.parameters())
    torch.testing.assert_close(first @ first.T, second.T @ second, rtol=0, atol=1e-5)
    gram = model.products()[-1].detach().T @ model.products()[-1].detach()
    assert (gram - gram.diag().diag()).abs().max() < 1e-5


def test_strong_decay_drops_weak_features_and_zero_is_a_local_minimum() -> None:
    """A feature whose reward does not pay for its decay would keep a weight; or a tiny start would not stay at 0."""
    end = contrastive_minimum(SIGNAL, NOISE, decay=0.25)
    kept = end.weights[-1] > 0
    threshold = (2 / 3) ** 1.5 * SIGNAL**1.5 / (SIGNAL + NOISE)  # where value and slope vanish together
    assert kept.tolist() == (threshold > 0.25).tolist() and not kept.all()
    tiny = LinearContrastive(4, 5, scale=0.01)
    M, S = torch.diag(SIGNAL), torch.diag(SIGNAL + NOISE)
    (gradient,) = torch.autograd.grad(tiny.objective(M, S, 0.25), [tiny.layers[0]])
    assert (gradient * tiny.layers[0]).sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: contrastive_minimum(torch.zeros(2), torch.ones(2)), "above 0"),
        (lambda: contrastive_minimum(torch.ones(2), torch.ones(3)), "noise"),
        (lambda: contrastive_minimum(torch.ones(2), torch.ones(2), decay=-1.0), "decay >= 0"),
        (lambda: LinearContrastive(3, 4, depth=0), "depth 0"),
    ],
)
def test_refuses_bad_input(make: object, message: str) -> None:
    """A number out of range would give a minimum of nothing."""
    with pytest.raises(InvalidInput, match=message):
        make()  # type: ignore[operator]
