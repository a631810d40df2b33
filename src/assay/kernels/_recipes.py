"""The forwards that `patch` puts in place of a model's own; each is a small frozen value, so models still pickle."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.kernels.fused_linear_cross_entropy.functional import linear_cross_entropy
from assay.kernels.gated_activations.functional import geglu, swiglu
from assay.kernels.layer_normalisation.functional import layer_norm
from assay.kernels.rms_normalisation.functional import rms_norm
from assay.kernels.rotary_embedding.functional import rope

__all__ = [
    "CausalLoss",
    "FusedLayerNorm",
    "FusedRMSNorm",
    "FusedRotation",
    "GatedMLP",
    "LossInHead",
    "TanhGELU",
    "rotate",
]


@dataclass(frozen=True)
class FusedRMSNorm:
    """`rms_norm` with the module's weight."""

    eps: float
    offset: float
    casting: str
    kernel: str = "rms_norm"

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return a forward of one tensor (..., H)."""

        def forward(module: Any, input: Tensor) -> Tensor:
            shape = module.weight.shape
            return rms_norm(input, shape, module.weight, self.eps, offset=self.offset, casting=self.casting)

        return forward


@dataclass(frozen=True)
class FusedLayerNorm:
    """`layer_norm` with the module's weight and bias."""

    kernel: str = "layer_norm"

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return a forward of one tensor (..., H)."""

        def forward(module: Any, input: Tensor) -> Tensor:
            return layer_norm(input, module.normalized_shape, module.weight, module.bias, module.eps)

        return forward


@dataclass(frozen=True)
class GatedMLP:
    """`swiglu` or `geglu` between the module's three projections."""

    kernel: str

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return a forward of one tensor (..., H)."""
        activation = {"swiglu": swiglu, "geglu": geglu}[self.kernel]

        def forward(module: Any, input: Tensor) -> Tensor:
            return module.down_proj(activation(module.gate_proj(input), module.up_proj(input)))

        return forward


@dataclass(frozen=True)
class TanhGELU:
    """PyTorch's own GELU by tanh, where a model spells it out and keeps each step."""

    kernel: str = "gelu"

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return a forward of one tensor."""

        def forward(module: nn.Module, input: Tensor) -> Tensor:
            return F.gelu(input, approximate="tanh")

        return forward


def rotate(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """`rope` of as many features as there are angles; some models rotate only the first ones."""
    size = cos.shape[-1]
    if size == queries.shape[-1]:
        return rope(queries, keys, cos, sin, unsqueeze_dim=unsqueeze_dim)
    turned = rope(queries[..., :size], keys[..., :size], cos, sin, unsqueeze_dim=unsqueeze_dim)
    first, second = (torch.cat((t, x[..., size:]), -1) for t, x in zip(turned, (queries, keys), strict=True))
    return first, second


@dataclass(frozen=True)
class FusedRotation:
    """The module's own forward, in whose eyes a global function has become `rotate`."""

    function: str
    kernel: str = "rope"

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return the forward with other globals: other models of the same class are not affected."""
        old: Any = base.forward
        # With its module's name among the globals, torch.compile would look the function up in that module.
        names = {name: value for name, value in old.__globals__.items() if name != "__name__"}
        names[self.function] = rotate
        new = FunctionType(old.__code__, names, old.__name__, old.__defaults__, old.__closure__)
        new.__kwdefaults__ = old.__kwdefaults__
        return functools.update_wrapper(new, old)


@dataclass
class _Request:
    """What a causal model asks of its head: the loss instead of logits."""

    labels: Tensor
    items: Tensor | int | None
    ignore_index: int
    softcap: float | None
    scale: float
    loss: Tensor | None = None


@dataclass(frozen=True)
class LossInHead:
    """A linear head that answers a request with a loss; without one it works as ever.

    The loss is formed in the head's own forward, so that what hooks on it do (gathering sharded weights) is in force.
    """

    kernel: str = ""  # a part of what `CausalLoss` changes

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return a forward of hidden states (..., H)."""

        def forward(module: Any, input: Tensor) -> Tensor:
            request = module.__dict__.get("_assay_request")
            if request is None:
                return base.forward(module, input)
            total = linear_cross_entropy(
                (input if request.scale == 1.0 else input * request.scale).reshape(-1, input.shape[-1]),
                module.weight,
                request.labels.reshape(-1).to(input.device),
                linear_bias=module.bias,
                reduction="mean" if request.items is None else "sum",
                ignore_index=request.ignore_index,
                softcap=request.softcap,
            )
            items = request.items
            if items is not None:
                total = total / (items.to(total.device) if isinstance(items, Tensor) else items)
            request.loss = total
            return input.new_empty((*input.shape[:-1], 0))

        return forward


@dataclass(frozen=True)
class CausalLoss:
    """A causal language model that, while training with labels, forms its loss and no logits.

    Args:
        head: The name of its linear head.
        softcap: Bound of its logits.
        scale: Factor of its logits, before they are bounded.
    """

    head: str
    softcap: float | None = None
    scale: float = 1.0
    kernel: str = "linear_cross_entropy"

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return a forward with the signature of the one it replaces."""
        from transformers.loss.loss_utils import ForCausalLMLoss

        place = list(inspect.signature(base.forward).parameters).index("labels") - 1

        @functools.wraps(base.forward)
        def forward(module: Any, *args: Any, **options: Any) -> Any:
            labels = args[place] if len(args) > place else options.get("labels")
            if labels is None or not module.training or module.loss_function is not ForCausalLMLoss:
                return base.forward(module, *args, **options)
            args = (*args[:place], None, *args[place + 1 :]) if len(args) > place else args
            request, as_dict = self._request(labels, options), options.get("return_dict")
            head = getattr(module, self.head)
            head.__dict__["_assay_request"] = request
            try:
                without = {name: value for name, value in options.items() if name != "labels"}
                outputs = base.forward(module, *args, **{**without, "return_dict": True})
            finally:
                del head.__dict__["_assay_request"]
            # Made anew, since the loss has to come first.
            rest = {name: value for name, value in outputs.items() if name not in ("loss", "logits")}
            outputs = type(outputs)(loss=request.loss, logits=None, **rest)
            return outputs if (module.config.return_dict if as_dict is None else as_dict) else outputs.to_tuple()

        return forward

    def _request(self, labels: Tensor, options: dict[str, Any]) -> _Request:
        """Shift the labels and read the options as the library's own loss does."""
        ignore_index, shifted = options.get("ignore_index", -100), options.get("shift_labels")
        if shifted is None:
            shifted = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        return _Request(shifted, options.get("num_items_in_batch"), ignore_index, self.softcap, self.scale)
