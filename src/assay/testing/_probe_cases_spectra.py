"""Cases of the probes that look at weight spectra and at what the weights have learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.probes.kernel_target_alignment import KernelTargetAlignment
from assay.probes.subspace_alignment import SubspaceAlignment
from assay.probes.weight_spectrum import WeightSpectrum

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {
    "weight-spectrum": WeightSpectrum,
    "weight-spectrum-svd": lambda: WeightSpectrum(["0", "6"], floor=0.0),
    "weight-spectrum-float32": lambda: WeightSpectrum(dtype=torch.float32),
    "subspace-alignment": lambda: SubspaceAlignment({"0": torch.ones(4)}, layers=["0", "4"], rank=2),
    "kernel-target-alignment": KernelTargetAlignment,
}
