"""`linear_cross_entropy` as users call it: checks, autocast and reduction around the operators; and as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.kernels._cross_entropy_rows import check_options, mean_loss
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels._head_arguments import autocast, check_chunking, check_head
from assay.kernels.fused_linear_cross_entropy.op import linear_cross_entropy_rows, linear_cross_entropy_sum

__all__ = ["LinearCrossEntropy", "linear_cross_entropy"]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    accumulate_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Cross-entropy of a linear classifier head, without ever holding all its logits.

    Equals `F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)`, and takes the arguments of
    `torch.nn.functional.linear_cross_entropy` under the same names. With logits $u = \tau\tanh(z/\tau)$ (or just $z$),
    $\ell$ their log-sum-exp, label $y$, class weights $w$, smoothing $\varepsilon$ and z-loss $\zeta$, a row's loss is
    $w_y\,[(1-\varepsilon)(\ell-u_y) + \zeta\ell^2] + \frac{\varepsilon}{V}\sum_c w_c(\ell-u_c)$, and "mean" divides
    by $\sum w_y$.

    Softmax and loss are computed in float32 for half-precision inputs, and the loss stays float32. Gradients have the
    dtypes of their tensors. They are formed during forward (for "none": again during backward). Second derivatives
    (`create_graph=True`), forward mode and `torch.func.grad` raise; `linear_cross_entropy_reference` has them.

    Args:
        input: (..., H) floating point; leading dimensions count as rows.
        linear_weight: (V, H), of the input's dtype (outside autocast).
        target: (...), int64 labels in [0, V) or `ignore_index`.
        linear_bias: (V,), of the input's dtype.
        weight: (V,) class weights, at least 0; gets no gradient.
        reduction: "mean" (nan if every label is ignored, as in PyTorch), "sum" or "none".
        ignore_index: Rows with this label count for nothing, and cost nothing.
        label_smoothing: In [0, 1].
        z_loss: Factor of the squared log-sum-exp, at least 0.
        softcap: Bound of the logits, above 0; `None` for none.
        chunk_size: Rows whose logits exist at once, at least 1; chosen from the shapes by default.
        accumulate_dtype: In which the weight's gradient is summed over chunks. By default the weight's dtype for up to
            8 chunks (in bfloat16 1.3 to 2 times the rounding error of one product) and float32 for more, which takes
            another 4 V H bytes; always float32 for float16, which could overflow.

    Returns:
        A scalar, or a loss per row in the target's shape for "none"; float32, or float64 for float64 inputs.

    Raises:
        InvalidInput: If shapes, dtypes, devices, options or labels do not fit.

    Example:
        >>> hidden, head = torch.randn(2, 5, 8), torch.nn.Linear(8, 100)
        >>> labels = torch.randint(100, (2, 5))
        >>> linear_cross_entropy(hidden, head.weight, labels, linear_bias=head.bias).shape
        torch.Size([])
    """
    input, linear_weight = autocast(input), autocast(linear_weight)
    linear_bias = None if linear_bias is None else autocast(linear_bias)
    _check_tensors(input, linear_weight, target, linear_bias, weight)
    _check_options(reduction, label_smoothing, z_loss, softcap, chunk_size, accumulate_dtype)

    labels = target.reshape(-1)
    rows = input.reshape(labels.shape[0], input.shape[-1])
    tensors = (rows, linear_weight, linear_bias, labels, weight)
    options = (ignore_index, float(label_smoothing), float(z_loss), softcap, chunk_size, accumulate_dtype)
    if reduction == "none":
        return linear_cross_entropy_rows(*tensors, *options).view(target.shape)
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (rows, linear_weight, linear_bias)]
    total = linear_cross_entropy_sum(*tensors, *options, *needs)[0]
    return total if reduction == "sum" else mean_loss(total, labels, weight, ignore_index)


def _check_tensors(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None
) -> None:
    name = "linear_cross_entropy"
    check_head(name, input, linear_weight, linear_bias, names=("input", "linear_weight", "linear_bias"))
    if target.dtype != torch.int64 or target.shape != input.shape[:-1]:
        raise InvalidInput(
            f"{name}: target must be int64 labels of shape {tuple(input.shape[:-1])}, not {target.dtype} of shape "
            f"{tuple(target.shape)}; class probabilities are not supported"
        )
    if weight is not None and weight.shape != linear_weight.shape[:1]:
        raise InvalidInput(f"{name}: weight must have shape ({linear_weight.shape[0]},), not {tuple(weight.shape)}")
    for what, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != input.device:
            raise InvalidInput(f"{name}: {what} is on {tensor.device} but input is on {input.device}")
    refuse_forward_mode(name, input, linear_weight, linear_bias)


def _check_options(
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    chunk_size: int | None,
    accumulate_dtype: torch.dtype | None,
) -> None:
    check_options("linear_cross_entropy", reduction, label_smoothing, z_loss, softcap)
    check_chunking("linear_cross_entropy", chunk_size, accumulate_dtype)


class LinearCrossEntropy(nn.Module):
    """`linear_cross_entropy` with its options bound; called with the head's tensors, so that a tied head fits too.

    Args:
        options: Keyword arguments of `linear_cross_entropy` other than tensors, and `weight`, the class weights (V,).

    Example:
        >>> criterion = LinearCrossEntropy(label_smoothing=0.1, z_loss=1e-4)
        >>> head = torch.nn.Linear(8, 100)
        >>> criterion(torch.randn(5, 8), head.weight, torch.randint(100, (5,)), head.bias).shape
        torch.Size([])
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        chunk_size: int | None = None,
        accumulate_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_options(reduction, label_smoothing, z_loss, softcap, chunk_size, accumulate_dtype)
        self.register_buffer("weight", weight)
        self.reduction, self.ignore_index, self.label_smoothing = reduction, ignore_index, label_smoothing
        self.z_loss, self.softcap = z_loss, softcap
        self.chunk_size, self.accumulate_dtype = chunk_size, accumulate_dtype

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None
    ) -> Tensor:
        """Return the loss; shapes as in `linear_cross_entropy`."""
        return linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            chunk_size=self.chunk_size,
            accumulate_dtype=self.accumulate_dtype,
        )

    def extra_repr(self) -> str:
        """Return the options."""
        return (
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"z_loss={self.z_loss}, softcap={self.softcap}, chunk_size={self.chunk_size}"
        )
