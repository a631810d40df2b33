"""Cases of the probes that measure information, for `assay.testing.probes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.information_plane import InformationPlane

CASES: dict[str, Callable[[], Any]] = {
    "information-plane": InformationPlane,
    "information-plane-unbounded": lambda: InformationPlane(["2"], ["fixed_width", "range", "quantile"], width=0.5),
    "information-plane-kde": lambda: InformationPlane(estimators=["kde_upper", "kde_lower"], noise_variance=0.1),
}
