"""The layer-peeled model: projected gradients end at the closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.models.collapse_minima import layer_peeled_minimum
from assay.models.layer_peeled import LayerPeeled


@pytest.mark.parametrize("bias", [True, False])
def test_projected_gradients_end_at_the_simplex(bias: bool) -> None:
    """Training ends elsewhere than at a simplex scaled to the bounds, or the model leaves them."""
    model = LayerPeeled(4, 3, 6, weight_bound=4.0, feature_bound=2.0, bias=bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    for _ in range(600):
        optimizer.zero_grad()
        F.cross_entropy(model(), model.targets).backward()
        optimizer.step()
        model.project()
    value, Z = layer_peeled_minimum("cross-entropy", 4, 4.0, 2.0, bias)
    assert F.cross_entropy(model(), model.targets).item() == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close((model.features @ model.head.weight.T).detach(), Z[model.targets], rtol=0, atol=5e-3)
    assert model.head.weight.square().sum(dim=1).max() <= 4 + 1e-9


def test_projection_shortens_and_never_lengthens() -> None:
    """A vector inside its ball is moved, or one outside ends elsewhere than on the sphere in its own direction."""
    model = LayerPeeled(3, 1, 2, weight_bound=1.0, feature_bound=1.0)
    with torch.no_grad():
        model.features.copy_(torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0]]))
    model.project()
    expected = torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(model.features.detach(), expected, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="bounds above 0"):
        LayerPeeled(3, 1, 2, weight_bound=0.0)
