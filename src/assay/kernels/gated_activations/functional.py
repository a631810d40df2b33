"""`swiglu` and `geglu` as users call them: checks and shapes around the operators."""

from __future__ import annotations

from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels._compiled_bodies import worth_compiling
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels.gated_activations.op import gated_activation

__all__ = ["geglu", "swiglu"]


def swiglu(a: Tensor, b: Tensor, *, compiled: bool | None = None) -> Tensor:
    """Gate with SiLU: `F.silu(a) * b`, keeping only a and b for backward.

    Eager code keeps the activation too, half as much again. Backward computes it once more. In float16 intermediates
    are float32. Second derivatives go through the plain reference; forward mode raises.

    Args:
        a: (...) floating point, the gate before its activation; may be a strided view, such as half of a projection.
        b: (...), of the same shape, dtype and device.
        compiled: On a CPU, whether `torch.compile` fuses the steps: faster by a quarter to a half, after some ten
            seconds in the first call. By default it does for at least 2^22 elements (2^18 inside a graph of
            `torch.compile`) where there is a C++ compiler. Of no effect on a GPU.

    Returns:
        (...), contiguous, of the inputs' dtype.

    Raises:
        InvalidInput: If shapes, dtypes or devices do not fit.

    Source: Hsu et al. (arXiv:2410.10989), section 3.2; Shazeer (arXiv:2002.05202), SwiGLU without its projections.

    Example:
        >>> import torch
        >>> gate, value = torch.randn(2, 5, 16).chunk(2, -1)
        >>> torch.allclose(swiglu(gate, value), torch.nn.functional.silu(gate) * value)
        True
    """
    return _gated("swiglu", a, b, "silu", compiled)


def geglu(a: Tensor, b: Tensor, *, compiled: bool | None = None) -> Tensor:
    """Gate with GELU in its tanh form: `F.gelu(a, approximate="tanh") * b`, keeping only a and b for backward.

    Otherwise as `swiglu`.

    Args:
        a: (...) floating point, the gate before its activation.
        b: (...), of the same shape, dtype and device.
        compiled: As for `swiglu`.

    Returns:
        (...), contiguous, of the inputs' dtype.

    Raises:
        InvalidInput: If shapes, dtypes or devices do not fit.

    Source: Hsu et al. (arXiv:2410.10989), section 3.2; Shazeer (arXiv:2002.05202), GEGLU without its projections.
    """
    return _gated("geglu", a, b, "gelu", compiled)


def _gated(name: str, a: Tensor, b: Tensor, activation: str, compiled: bool | None) -> Tensor:
    if not a.is_floating_point():
        raise InvalidInput(f"{name}: a must be floating point, not {a.dtype}")
    for what, of_a, of_b in (
        ("shape", tuple(a.shape), tuple(b.shape)),
        ("dtype", a.dtype, b.dtype),
        ("device", a.device, b.device),
    ):
        if of_a != of_b:
            raise InvalidInput(f"{name}: a and b must have the same {what}, not {of_a} and {of_b}")
    refuse_forward_mode(name, a, b)
    rows = (-1, a.shape[-1]) if a.dim() and a.numel() else (1, a.numel())
    if compiled is None:
        compiled = worth_compiling(a)
    return gated_activation(a.reshape(rows), b.reshape(rows), activation, compiled).view(a.shape)
