import math

import pytest
import torch

from assay.errors import InvalidInput
from assay.probes.agreement import feature_agreement


def means(K, d, seed):
    """K random rows."""
    return torch.randn(K, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_definition_by_covariances():
    """The Gram route differs from |B^T A|^2 / (|A^T A| |B^T B|) of the centred matrices."""
    A, B = means(6, 4, 0), means(6, 9, 1)
    a, b = A - A.mean(0), B - B.mean(0)
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert feature_agreement(A, B) == pytest.approx(expected.item(), rel=1e-12)


def test_rotation_scale_and_shift_do_not_matter_but_anisotropy_does():
    """An invariance of CKA is missing, or everything agrees with everything."""
    A = means(6, 5, 0)
    rotation = torch.linalg.qr(means(5, 5, 1))[0]
    assert feature_agreement(A, -3 * A @ rotation + 8) == pytest.approx(1.0, abs=1e-12)
    assert feature_agreement(A, A * torch.tensor([10.0, 1, 1, 1, 1])) < 0.95


def test_simplexes_agree_in_any_dimension():
    """Two perfectly collapsed networks of different width count as different."""
    assert feature_agreement(torch.eye(4), 2 * torch.eye(4, 9)) == pytest.approx(1.0, abs=1e-12)


def test_undefined_and_refused():
    """Means without spread give a number, or different numbers of classes are compared."""
    assert math.isnan(feature_agreement(torch.ones(4, 2), torch.eye(4)))
    with pytest.raises(InvalidInput, match="two matrices"):
        feature_agreement(torch.eye(3), torch.eye(4))
