"""Noise detection: precision and recall against scikit-learn's."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import precision_score, recall_score

from assay.errors import InvalidInput
from assay.probes.noise_found import noise_detection


def test_precision_and_recall_are_scikit_learns() -> None:
    """The two would be exchanged."""
    generator = torch.Generator().manual_seed(0)
    flagged, corrupted = torch.rand(300, generator=generator) < 0.7, torch.rand(300, generator=generator) < 0.3
    values = noise_detection(flagged, corrupted)
    assert values["noise_precision"] == pytest.approx(precision_score(corrupted, flagged))
    assert values["noise_recall"] == pytest.approx(recall_score(corrupted, flagged))


def test_nothing_flagged_or_nothing_wrong_is_no_number() -> None:
    """A detector that flags nothing would look perfect, or useless."""
    none, some = torch.zeros(2, dtype=torch.bool), torch.tensor([True, False])
    assert math.isnan(noise_detection(none, some)["noise_precision"])
    assert math.isnan(noise_detection(some, none)["noise_recall"])


def test_bad_input_is_one_clear_error() -> None:
    """Scores in place of flags would be summed."""
    with pytest.raises(InvalidInput, match="boolean"):
        noise_detection(torch.rand(3), torch.ones(3, dtype=torch.bool))
