"""Linear layers that train with 4-bit weights and activations, simulated, and a model's layers replaced by them.

Paper: "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (arXiv:2502.17055), the experiments on INT4 and
FP4; official code. The weight W kept in full precision, its 4-bit copy Q(W) and that of the input A(x) give

    y = A(x) Q(W)^T + b,    dW = dy^T A(x),    dx = dy Q(W)      (straight through both roundings; dy is not rounded)

Shapes: x (..., in), y (..., out), W (out, in). A weight's groups are consecutive entries of the flattened weight, an
activation's of its features, so that no group reaches from one token into the next.

Departures: the official INT4 layer ignores its settings for activations and uses those of weights; here each has its
own. Stochastic rounding is for training mode only.
Cost: the products of a plain layer, rounding on top, and rounded copies of input and weight saved for backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.compress.four_bit import FP4, Int4, straight_through
from assay.errors import InvalidInput

__all__ = ["FakeQuantLinear", "FakeQuantization", "fake_quantize_"]

WEIGHT = Int4(group=256)
ACT = Int4(group=256, outliers=2, symmetric=True)


class FakeQuantLinear(nn.Linear):
    """A linear layer with simulated 4-bit weights and inputs.

    Parameters and state dict are those of `nn.Linear`, in full precision.

    Args:
        in_features: Input size, at least 1.
        out_features: Output size, at least 1.
        bias: Whether to add a bias, in full precision.
        weight: Format of the weight; None leaves it as it is.
        act: Format of the input; None leaves it as it is.
        generator: Draws the initial weights (None is torch's global generator, as in `nn.Linear`) and, where a format
            is stochastic, the noise of its rounding; its state is not in the state dict.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        InvalidInput: If a size is below 1, a format is none, or a stochastic one has no generator; from `forward`, if
            the input is not floating point or not (..., in_features).

    Example:
        >>> layer = FakeQuantLinear(64, 8, weight=Int4(group=64), act=Int4(group=64, outliers=2, symmetric=True))
        >>> layer(torch.zeros(5, 3, 64)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight: Int4 | FP4 | None = WEIGHT,
        act: Int4 | FP4 | None = ACT,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if min(in_features, out_features) < 1:
            raise InvalidInput(f"FakeQuantLinear: sizes must be at least 1; got {in_features} and {out_features}")
        _check_formats(weight, act, generator)
        self.generator = generator
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight_format, self.act_format = weight, act
        if not _is_stochastic(weight, act):
            self.generator = None

    def reset_parameters(self) -> None:
        """Draw the weights as `nn.Linear` does."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=self.generator)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound, generator=self.generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., out_features) for x (..., in_features)."""
        if not x.is_floating_point() or x.dim() < 1 or x.shape[-1] != self.in_features:
            raise InvalidInput(
                f"FakeQuantLinear expects floating-point inputs (..., {self.in_features}); "
                f"got {x.dtype} of shape {tuple(x.shape)}"
            )
        weight = self._rounded(self.weight.flatten(), self.weight_format).view_as(self.weight)
        return F.linear(self._rounded(x, self.act_format), weight, self.bias)

    def _rounded(self, x: Tensor, form: Int4 | FP4 | None) -> Tensor:
        if form is None:
            return x
        if not self.training and isinstance(form, Int4) and form.stochastic:
            form = Int4(form.group, form.outliers, form.symmetric)
        return straight_through(x, form, self.generator)

    def extra_repr(self) -> str:
        """Return the settings for printing."""
        return f"{super().extra_repr()}, weight={self.weight_format}, act={self.act_format}"


class Replaced(NamedTuple):
    """A layer that was replaced: its dotted name, where it was, and it."""

    name: str
    parent: nn.Module
    child: str
    original: nn.Linear


class FakeQuantization:
    """The record of the layers that were replaced in a model; undo it, or use it as a context manager.

    Args:
        replaced: What was replaced.
    """

    def __init__(self, replaced: Iterable[Replaced]) -> None:
        self.replaced = tuple(replaced)
        self.active = True

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names in the model."""
        return tuple(each.name for each in self.replaced)

    def undo(self) -> None:
        """Put the original layers back, with the weights as they are now; further calls do nothing."""
        if self.active:
            for _, parent, child, original in self.replaced:
                present = getattr(parent, child)
                original.train(present.training)
                # not always those of before: `load_state_dict(..., assign=True)` replaces them
                original.weight, original.bias = present.weight, present.bias
                setattr(parent, child, original)
        self.active = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<FakeQuantization{'' if self.active else ' (undone)'} of {len(self.replaced)} layers>"


def fake_quantize_(
    model: nn.Module,
    weight: Int4 | FP4 | None = WEIGHT,
    act: Int4 | FP4 | None = ACT,
    *,
    skip: Sequence[str] = ("embed", "head"),
    generator: torch.Generator | None = None,
) -> FakeQuantization:
    """Replace a model's linear layers by `FakeQuantLinear`, in place.

    Parameters are the same objects, so optimizers made before keep working, and state-dict keys stay. Subclasses of
    `nn.Linear` are left alone, and layers whose weight or bias is computed (by a parametrization, `spectral_norm`,
    pruning). So are hooks: those on a replaced layer run again once it is back.

    Args:
        model: Any module but a linear layer itself; changed in place.
        weight: Format of weights; None leaves them as they are.
        act: Format of inputs; None leaves them as they are.
        skip: Layers whose own name (the last part of the dotted one) contains any of these are left alone.
        generator: For stochastic rounding; shared by all layers.

    Returns:
        The record: `.names`, `.undo()`; leaving a `with` block undoes too.

    Raises:
        InvalidInput: If there is nothing to replace, a format is none, a stochastic one has no generator, or a layer is
            in an `nn.TransformerEncoderLayer` while torch's fast path, which would not call it, is enabled.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with fake_quantize_(model, weight=FP4(group=8), act=None) as record:
        ...     record.names, type(model[0]).__name__
        (('0', '2'), 'FakeQuantLinear')
        >>> type(model[0]).__name__
        'Linear'
    """
    _check_formats(weight, act, generator)
    if isinstance(skip, str):
        raise InvalidInput(f"skip must be a sequence of names, not {skip!r}; write [{skip!r}]")
    replaced = [
        Replaced(f"{place}.{child}" if place else child, parent, child, layer)
        for place, parent in model.named_modules()
        for child, layer in parent._modules.items()  # named_children() leaves out a layer's second name
        if type(layer) is nn.Linear and _is_plain(layer) and not any(word in child for word in skip)
    ]
    if not replaced:
        raise InvalidInput(
            f"fake_quantize_: found no nn.Linear inside this {type(model).__name__} to replace, apart from names with "
            f"{', '.join(skip) or '(nothing to skip)'}"
        )
    _refuse_fast_path(replaced)
    made = {each.original: _like(each.original, weight, act, generator) for each in replaced}
    for each in replaced:
        setattr(each.parent, each.child, made[each.original])
    return FakeQuantization(replaced)


def _like(
    linear: nn.Linear, weight: Int4 | FP4 | None, act: Int4 | FP4 | None, generator: torch.Generator | None
) -> FakeQuantLinear:
    """Return a layer with the very parameters of a linear one."""
    layer = FakeQuantLinear(linear.in_features, linear.out_features, False, weight=None, act=None, device="meta")
    layer.weight, layer.bias = linear.weight, linear.bias
    layer.weight_format, layer.act_format = weight, act
    layer.generator = generator if _is_stochastic(weight, act) else None
    return layer.train(linear.training)


def _is_plain(layer: nn.Linear) -> bool:
    """Return whether a layer's weight and bias are parameters, not computed by hooks."""
    return {"weight", "bias"} <= layer._parameters.keys()


def _refuse_fast_path(replaced: Iterable[Replaced]) -> None:
    """Raise InvalidInput if a layer's parent would read its weight, in evaluation, instead of calling it."""
    encoders = [each.name for each in replaced if isinstance(each.parent, nn.TransformerEncoderLayer)]
    if encoders and torch.backends.mha.get_fastpath_enabled():
        raise InvalidInput(
            f"fake_quantize_: torch's fast path of nn.TransformerEncoderLayer would evaluate {encoders[0]} in full "
            "precision; call torch.backends.mha.set_fastpath_enabled(False) first and leave it so"
        )


def _is_stochastic(*formats: Int4 | FP4 | None) -> bool:
    return any(isinstance(form, Int4) and form.stochastic for form in formats)


def _check_formats(weight: Any, act: Any, generator: torch.Generator | None) -> None:
    for name, form in (("weight", weight), ("act", act)):
        if form is not None and not isinstance(form, Int4 | FP4):
            raise InvalidInput(f"{name} must be an Int4, an FP4 or None, not {form!r}")
    if _is_stochastic(weight, act) and generator is None:
        raise InvalidInput("stochastic rounding needs a generator; pass generator=torch.Generator().manual_seed(0)")
