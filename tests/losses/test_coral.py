"""CORAL against NumPy's moments, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.errors import InvalidInput
from assay.losses.coral import CORALPenalty, coral_penalty

from .domain_batches import domains, linear


def test_penalty_is_the_distance_of_numpys_moments() -> None:
    """Covariances would be over B or of features not centred, or a factor of d would be missing."""
    z, _ = domains()
    moments = [(a.numpy().mean(0), np.cov(a.numpy().T)) for a in z]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [
        ((moments[e][0] - moments[f][0]) ** 2).sum() / 4 + ((moments[e][1] - moments[f][1]) ** 2).sum() / 16
        for e, f in pairs
    ]
    assert coral_penalty(z, reduction="none").tolist() == pytest.approx(expected, rel=1e-10)
    assert CORALPenalty()(z).item() == pytest.approx(np.mean(expected), rel=1e-10)


def test_moments_alone_matter() -> None:
    """The penalty would see more than two moments, or the place of a domain: a shift common to all changes nothing."""
    z, y = domains((6, 6))
    rotated = [a + 5.0 for a in z]
    assert CORALPenalty()(rotated).item() == pytest.approx(CORALPenalty()(z).item(), rel=1e-9)
    assert CORALPenalty()([z[0], z[0].flip(0)]).item() < 1e-28
    assert CORALPenalty()(z, y, linear()).item() == CORALPenalty()(z).item()


def test_bad_input_is_one_clear_error() -> None:
    """One domain, or one sample without a covariance, would give 0 or NaN."""
    z, _ = domains()
    with pytest.raises(InvalidInput, match="1 domain"):
        CORALPenalty()(z[:1])
    with pytest.raises(InvalidInput, match="1 sample"):
        CORALPenalty()([z[0], z[1][:1]])
    assert torch.isfinite(CORALPenalty()([z[0], z[1][:2]]))
