"""The one table of checks that a part of ours is known not to pass, each with its reason; the docs render it."""

from __future__ import annotations

__all__ = ["EXPECTED_FAILURES"]

_ROUNDED = (
    "the layer computes with numbers rounded to FP8, a step function, and its gradient takes the rounding for the "
    "identity, as finite differences cannot"
)

_FOUR_BIT = _ROUNDED.replace("FP8", "4 bits")

_COMPARED = "labels are only compared with each other, so that any integer is a label and none is out of range"

_SIGNS = "it draws random signs from a generator, which torch.compile and vmap do not trace"

_PRECONDITIONED = (
    "in training mode the weight's gradient is multiplied by an inverse moment of the input: what an optimizer should "
    "follow, but no derivative"
)

EXPECTED_FAILURES: dict[tuple[str, str, str], str] = {
    # (seam, case, check): reason
    ("kernels", "embedding-padding", "gradient"): "the padding's row takes part in the result but gets no gradient",
    ("losses", "hessian-alignment-hutchinson", "compile"): _SIGNS,
    ("losses", "hessian-alignment-hutchinson", "per-sample-gradients"): _SIGNS,
    ("losses", "coral", "bad-input"): "CORAL compares features and reads no labels",
    ("losses", "jacobian-symmetry", "bad-input"): "it is a loss of a vector field at a state and reads no labels",
    ("losses", "leave-one-out-knn", "bad-input"): _COMPARED,
    ("losses", "leave-one-out-knn-skip", "bad-input"): _COMPARED,
    ("losses", "supervised-contrastive", "bad-input"): _COMPARED,
    ("losses", "supervised-contrastive-warm", "bad-input"): _COMPARED,
    ("losses", "spectral-contrastive", "bad-input"): "it compares two views and reads no labels",
    ("nn", "fake-quant-linear", "gradient"): _FOUR_BIT,
    ("nn", "fake-quant-linear-fp4", "gradient"): _FOUR_BIT,
    ("nn", "fp8-linear", "gradient"): _ROUNDED,
    ("nn", "fp8-mlp", "gradient"): _ROUNDED,
    ("nn", "fp8-mlp-gelu", "gradient"): _ROUNDED,
    ("nn", "fp8-rms-norm", "gradient"): _ROUNDED,
    ("nn", "tract-conv2d", "gradient"): _PRECONDITIONED,
    ("nn", "tract-linear", "gradient"): _PRECONDITIONED,
    ("nn", "tract-linear-few-rows", "gradient"): _PRECONDITIONED,
    ("rules", "no-prop", "gradients-go-to-trained-parameters"): (
        "each mini-batch trains the blocks that are drawn for it, and the others get no gradient"
    ),
}
