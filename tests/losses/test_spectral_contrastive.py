"""Spectral contrastive loss against its equation as loops, its expectation for linear maps, and its known minimum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.losses.spectral_contrastive import SpectralContrastiveLoss, spectral_contrastive_loss
from assay.models.linear_contrastive import LinearContrastive


def _views(samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return two views of independent features, and the variances of features and noise."""
    generator = torch.Generator().manual_seed(seed)
    signal, noise = torch.tensor([1.0, 0.5, 0.25]).double(), torch.tensor([0.1, 0.3, 0.2]).double()
    x = signal.sqrt() * torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    first, second = (
        x + noise.sqrt() * torch.randn(samples, 3, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return first, second, signal, noise


def test_equals_the_equation_pair_by_pair() -> None:
    """The pairs, or the number they are averaged over, would be others."""
    first, second, _, _ = _views(5, 0)
    for i, found in enumerate(spectral_contrastive_loss(first, second, "none")):
        others = [float(first[i] @ second[j]) ** 2 for j in range(5) if j != i]
        assert found.item() == pytest.approx(-2 * float(first[i] @ second[i]) + sum(others) / 4)


def test_mean_over_batches_is_the_population_loss_of_a_linear_network() -> None:
    """The estimate would be biased, as it is where a sample counts among its own others."""
    model = LinearContrastive(3, 3, scale=0.5)
    first, second, signal, noise = _views(8 * 4000, 1)
    with torch.no_grad():
        a, b = model(first).split(8), model(second).split(8)
        values = torch.stack([spectral_contrastive_loss(x, y) for x, y in zip(a, b, strict=True)])
        expected = model.objective(torch.diag(signal), torch.diag(signal + noise))
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected) < 4 * error
    assert error < 0.05 * expected.abs()


def test_orthogonal_and_equal_features() -> None:
    """Orthogonal features would repel each other, or equal ones not."""
    z = 3 * torch.eye(4)
    assert spectral_contrastive_loss(z, z).item() == pytest.approx(-18)
    assert spectral_contrastive_loss(torch.ones(4, 1), torch.ones(4, 1)).item() == pytest.approx(-2 + 1)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(1, 2), "at least 2"),
        (torch.zeros(3, 2), torch.zeros(3, 4), r"\(3, 2\) and torch.float32 \(3, 4\)"),
        (torch.zeros(3), torch.zeros(3), r"\(B, D\)"),
    ],
)
def test_refuses_bad_input(first: Tensor, second: Tensor, message: str) -> None:
    """A batch of one would divide by zero, and views of different widths would be broadcast."""
    with pytest.raises(InvalidInput, match=message):
        SpectralContrastiveLoss()(first, second)
    with pytest.raises(InvalidInput, match="reduction"):
        SpectralContrastiveLoss("max")
