"""Probes of the paper li2 in the setting of `assay.testing.probes`: a small classifier on four inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.feature_stages import FeatureStages
from assay.probes.frequencies import FrequencyConcentration
from assay.probes.weight_movement import WeightMovement

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {
    "feature-stages": FeatureStages,
    "frequency-concentration": lambda: FrequencyConcentration(2),
    "weight-movement": WeightMovement,
}
