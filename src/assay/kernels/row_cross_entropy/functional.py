"""`cross_entropy` as users call it: checks and reduction around the operators."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels._cross_entropy_rows import check_options, mean_loss
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels.row_cross_entropy.op import InPlaceRows, cross_entropy_rows

__all__ = ["cross_entropy"]


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    in_place: bool = False,
) -> Tensor:
    r"""Cross-entropy that keeps nothing but its logits for backward, or not even these.

    Equals `F.cross_entropy(logits, target, ...)` with the classes in the last dimension. With logits
    $u = \tau\tanh(z/\tau)$ (or just $z$), $\ell$ their log-sum-exp, label $y$, class weights $w$, smoothing
    $\varepsilon$ and z-loss $\zeta$, a row's loss is
    $w_y\,[(1-\varepsilon)(\ell-u_y) + \zeta\ell^2] + \frac{\varepsilon}{V}\sum_c w_c(\ell-u_c)$, and "mean" divides
    by $\sum w_y$.

    Eager code keeps the log-softmax beside the logits and then forms the gradient: three tensors of that size, four
    and more if half-precision logits are made float32 first. Here there are two, logits and gradient, and with
    `in_place` one. Softmax and loss are float32 for half-precision logits, and the loss stays float32; the gradient
    has the logits' dtype. Second derivatives go through the plain reference (with `in_place` they raise); forward mode
    raises. If the logits come from a linear head, `linear_cross_entropy` doesn't need even one such tensor.

    Args:
        logits: (..., V) floating point.
        target: (...), int64 labels in [0, V) or `ignore_index`.
        weight: (V,) class weights, at least 0; gets no gradient.
        reduction: "mean" (nan if every label is ignored, as in PyTorch), "sum" or "none".
        ignore_index: Rows with this label count for nothing.
        label_smoothing: In [0, 1].
        z_loss: Factor of the squared log-sum-exp, at least 0.
        softcap: Bound of the logits, above 0; `None` for none.
        in_place: Overwrite the logits with their gradient during forward, if a gradient is needed. They must be
            contiguous and no leaf, and nobody may read them afterwards; autograd raises if a backward pass wants to.

    Returns:
        A scalar, or a loss per row in the target's shape for "none"; float32, or float64 for float64 logits.

    Raises:
        InvalidInput: If shapes, dtypes, devices, options or labels do not fit.

    Source: Hsu et al. (arXiv:2410.10989), section 3.2, CrossEntropy.

    Example:
        >>> logits, labels = torch.randn(2, 5, 100), torch.randint(100, (2, 5))
        >>> cross_entropy(logits, labels, label_smoothing=0.1, z_loss=1e-4).shape
        torch.Size([])
    """
    _check_tensors(logits, target, weight)
    check_options("cross_entropy", reduction, label_smoothing, z_loss, softcap)
    labels = target.reshape(-1)
    options = (ignore_index, float(label_smoothing), float(z_loss), softcap)
    if in_place and torch.is_grad_enabled() and logits.requires_grad:
        _check_in_place(logits)
        losses = InPlaceRows.apply(logits.view(labels.shape[0], logits.shape[-1]), labels, weight, *options)
    else:
        losses = cross_entropy_rows(logits.reshape(labels.shape[0], logits.shape[-1]), labels, weight, *options)
    if reduction == "none":
        return losses.view(target.shape)
    return losses.sum() if reduction == "sum" else mean_loss(losses.sum(), labels, weight, ignore_index)


def _check_tensors(logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
    name = "cross_entropy"
    if not logits.is_floating_point() or logits.dim() < 1 or logits.shape[-1] < 1:
        raise InvalidInput(
            f"{name}: logits must be floating point of shape (..., V) with V > 0, "
            f"not {logits.dtype} of shape {tuple(logits.shape)}"
        )
    if target.dtype != torch.int64 or target.shape != logits.shape[:-1]:
        raise InvalidInput(
            f"{name}: target must be int64 labels of shape {tuple(logits.shape[:-1])} (classes are the logits' last "
            f"dimension), not {target.dtype} of shape {tuple(target.shape)}; class probabilities are not supported"
        )
    if weight is not None and weight.shape != logits.shape[-1:]:
        raise InvalidInput(f"{name}: weight must have shape ({logits.shape[-1]},), not {tuple(weight.shape)}")
    for what, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != logits.device:
            raise InvalidInput(f"{name}: {what} is on {tensor.device} but logits is on {logits.device}")
    refuse_forward_mode(name, logits)


def _check_in_place(logits: Tensor) -> None:
    if logits.is_leaf:
        raise InvalidInput("cross_entropy: in_place=True would destroy a leaf that requires grad; pass a result of it")
    if not logits.is_contiguous():
        raise InvalidInput(
            "cross_entropy: in_place=True needs contiguous logits; shift the labels instead of slicing the logits, or "
            "leave in_place out"
        )
