"""Fixed random projections: their distributions, their use on labels and errors."""

from __future__ import annotations

import math

import pytest
import torch

from assay.errors import InvalidInput
from assay.rules.random_projections import fixed_projection, project

LIKE = torch.empty(0, dtype=torch.float64)


def _draw(distribution: str, units: tuple[int, ...] = (40, 50)) -> torch.Tensor:
    return fixed_projection(10, units, distribution, generator=torch.Generator().manual_seed(0), like=LIKE)


@pytest.mark.parametrize(
    ("distribution", "deviation", "largest"),
    [
        ("normal", 1.0, math.inf),
        ("uniform", 1 / math.sqrt(3), 1.0),
        ("sign", 1.0, 1.0),
        ("kaiming", math.sqrt(2 / 2000), math.sqrt(6 / 2000)),
    ],
)
def test_distributions(distribution: str, deviation: float, largest: float) -> None:
    """A distribution would have another mean, deviation or range than its name says."""
    drawn = _draw(distribution)
    assert drawn.dtype == torch.float64 and abs(drawn.mean().item()) < 4 * deviation / math.sqrt(20000)
    assert drawn.std().item() == pytest.approx(deviation, rel=0.03) and drawn.abs().max() <= largest
    assert torch.equal(drawn, _draw(distribution))


def test_kaiming_is_torchs() -> None:
    """The bound of "kaiming" would not be the one that DRTP's code gets from kaiming_uniform_ on (C, *units)."""
    reference = torch.nn.init.kaiming_uniform_(torch.empty(10, 40, 50), generator=torch.Generator().manual_seed(0))
    assert _draw("kaiming").abs().max().item() == pytest.approx(reference.abs().max().item(), rel=1e-3)


def test_labels_are_one_hot_class_vectors() -> None:
    """A label would be projected otherwise than its one-hot vector, or than the matrix product says."""
    matrix, y = _draw("normal", (3, 4)), torch.tensor([2, 0, 9])
    one_hot = torch.nn.functional.one_hot(y, 10).double()
    assert torch.equal(project(y, matrix), project(one_hot, matrix))
    e = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(project(e, matrix), torch.einsum("bc,cij->bij", e, matrix))


def test_refuses_what_it_cannot_project() -> None:
    """Labels of another form would be projected to nonsense by broadcasting."""
    with pytest.raises(InvalidInput, match="one of normal"):
        _draw("gaussian")
    for classes in (torch.zeros(3, 4), torch.zeros(3, 10, dtype=torch.long), torch.zeros(3)):
        with pytest.raises(InvalidInput, match=r"class vectors \(B, 10\)"):
            project(classes, _draw("normal"))
