"""The one table of checks that a part of ours is known not to pass, each with its reason; the docs render it."""

from __future__ import annotations

__all__ = ["EXPECTED_FAILURES"]

_ROUNDED = (
    "the layer computes with numbers rounded to FP8, a step function, and its gradient takes the rounding for the "
    "identity, as finite differences cannot"
)

EXPECTED_FAILURES: dict[tuple[str, str, str], str] = {
    # (seam, case, check): reason
    ("kernels", "embedding-padding", "gradient"): "the padding's row takes part in the result but gets no gradient",
    ("nn", "fp8-linear", "gradient"): _ROUNDED,
    ("nn", "fp8-mlp", "gradient"): _ROUNDED,
    ("nn", "fp8-mlp-gelu", "gradient"): _ROUNDED,
    ("nn", "fp8-rms-norm", "gradient"): _ROUNDED,
}
