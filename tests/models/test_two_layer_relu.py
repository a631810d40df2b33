"""The theory's two-layer ReLU network against its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.models.two_layer_relu import TwoLayerReLU


def _model(p: int = 5, m: int = 8, **options: float) -> TwoLayerReLU:
    return TwoLayerReLU((p,), width=m, init_std=1.0, generator=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]


def test_scores_are_the_formula_and_its_negative() -> None:
    """The network would not be sum_j a_j relu(<w_j, x>) with a_j = +-1 / sqrt(m)."""
    model = _model()
    a, W = 2 * model.head.weight[1].detach(), model.block1[0].weight.detach()
    assert torch.allclose(a.abs(), torch.full((8,), 1 / math.sqrt(8)))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    f = torch.stack([sum(a[j] * max(0.0, float(W[j] @ row)) for j in range(8)) for row in x])  # type: ignore[arg-type]
    assert torch.allclose(model(x), torch.stack([-f / 2, f / 2], dim=1), atol=1e-6)


def test_cross_entropy_is_the_logistic_loss_of_the_margin() -> None:
    """Training with cross-entropy would not be the paper's."""
    model, x = _model(), torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    scores = model(x)
    f = scores[:, 1] - scores[:, 0]
    assert torch.allclose(F.cross_entropy(scores, y), F.softplus(-(2 * y - 1) * f).mean())


def test_only_the_hidden_layer_is_trained_unless_asked() -> None:
    """The signs would move, which is another model."""
    names = {name for name, p in _model().named_parameters() if p.requires_grad}
    assert names == {"block1.0.weight"}
    assert all(p.requires_grad for p in _model(trainable_top=True).parameters())


def test_initial_weights_have_the_given_spread_and_signs_are_fair() -> None:
    """The start would not be N(0, omega^2) with random signs."""
    model = TwoLayerReLU((50,), width=2000, init_std=3e-4, generator=torch.Generator().manual_seed(3))
    assert model.block1[0].weight.std().item() == pytest.approx(3e-4, rel=0.02)
    assert (model.head.weight[1] > 0).double().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("wrong", [{"outputs": 3}, {"width": 0}, {"init_std": 0.0}])
def test_what_the_network_is_not_defined_for_is_refused(wrong: dict[str, float]) -> None:
    """Ten classes, or neurons that never learn, would be accepted silently."""
    with pytest.raises(InvalidInput, match=r"expected|two classes"):
        TwoLayerReLU((4,), **wrong)  # type: ignore[arg-type]
