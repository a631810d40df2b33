"""Cases of the probes of activation sparsity and of ensembles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.activation_sparsity import ActivationSparsity
from assay.probes.bias_variance_alignment import BiasVariance
from assay.probes.gradient_sign import GradientSign

__all__ = ["CASES"]

# The model of the checks is no ensemble: there "bias-variance" must say so.
CASES: dict[str, Callable[[], Any]] = {
    "activation-sparsity": ActivationSparsity,
    "activation-sparsity-flops": lambda: ActivationSparsity(layers=["2"], inputs_of=["6"], count_flops=True),
    "activation-sparsity-relative": lambda: ActivationSparsity(threshold=0.3),
    "bias-variance-without-members": BiasVariance,
    "gradient-sign": GradientSign,
}
