"""Layers that keep what backward needs in FP8: linear, RMSNorm and the MLP of a transformer.

Paper: "COAT: Compressing Optimizer States and Activations for Memory-Efficient FP8 Training" (arXiv:2410.19313), mixed
granularity FP8 precision flow. An input of a linear layer is rounded to E4M3 with one scale, an input of a non-linear
one (norm, activation, product with the gate) with a scale per group of 16, and that rounded copy is both computed
with and saved. In backward, gradients that enter a linear layer are rounded to E5M2 with one scale. Weights stay in
their type and are rounded on the fly.

Shapes: x (..., d), hidden width h. Saved by the gated MLP: d + 4 h bytes per row, and h / 8 for each of its three
grouped tensors' scales; by RMSNorm: d + d / 8 + 4. The same layers in bfloat16 save 4 d + 8 h.

Departures: tensors between layers are in the compute type and are rounded where they enter a layer, to the numbers
that the official code's kernels round to where they leave one, so that the layers can be used one by one. Gradients
between the layers of a block are not rounded. A bias is added unrounded. The saved copies are the paper's; keeping
fewer and recomputing the activation would save more.
Cost: products are computed on the dequantized codes, on any device: FP8 hardware is not used, so this saves memory and
no time. No second derivatives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn import _fp8_functions as functions

__all__ = ["FP8MLP", "FP8Linear", "FP8RMSNorm"]


def _checked(x: Tensor, features: int, layer: nn.Module) -> Tensor:
    if not x.is_floating_point() or x.dim() < 1 or x.shape[-1] != features:
        raise InvalidInput(
            f"{type(layer).__name__} expects floating-point inputs (..., {features}); "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )
    return x


def _compute_input(x: Tensor, features: int, layer: nn.Module) -> Tensor:
    """Return x in the type to compute in, which autocast decides where it is on."""
    x, device = _checked(x, features, layer), x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _check_sizes(layer: str, **sizes: int) -> None:
    if min(sizes.values()) < 1:
        raise InvalidInput(f"{layer}: sizes must be at least 1; got {', '.join(f'{k} {v}' for k, v in sizes.items())}")


def _linear(x: Tensor, group_size: int, *layers: nn.Linear) -> list[Tensor]:
    """Apply linear layers that share one saved copy of their input."""
    products = functions.Linear.apply(x, group_size, *(layer.weight for layer in layers))
    return [y if layer.bias is None else y + layer.bias.to(y.dtype) for y, layer in zip(products, layers, strict=True)]


class FP8Linear(nn.Linear):
    """A linear layer computed on FP8 inputs and weights, which saves its input in one byte per entry.

    Its parameters and state dict are those of `nn.Linear`.

    Args:
        in_features: Input size d, at least 1.
        out_features: Output size, at least 1.
        bias: Whether to add a bias.
        group_size: Groups of the first stage of the maximum (group scaling); it changes no result.
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Linear`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        InvalidInput: If a size is below 1; from `forward`, if the input is not floating point or not (..., d).

    Example:
        >>> layer = FP8Linear(32, 8)
        >>> layer(torch.zeros(5, 3, 32)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group_size: int = 16,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_sizes("FP8Linear", in_features=in_features, out_features=out_features, group_size=group_size)
        self._generator = generator
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._generator = None  # a generator cannot be copied or pickled
        self.group_size = group_size

    def reset_parameters(self) -> None:
        """Draw the weights as `nn.Linear` does."""
        generator, bound = self._generator, 1 / math.sqrt(self.in_features)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., out_features) for x (..., in_features), in x's type or autocast's."""
        (y,) = _linear(_compute_input(x, self.in_features, self), self.group_size, self)
        return y


class FP8RMSNorm(nn.Module):
    """Root-mean-square normalisation that saves its input in FP8 with a scale per group.

    Args:
        features: Size d of the last dimension, at least 1.
        eps: Added to the mean square.
        group_size: Entries per group.
        device: Of the weight.
        dtype: Of the weight.

    Raises:
        InvalidInput: If a size is below 1; from `forward`, if the input is not floating point or not (..., d).

    Example:
        >>> FP8RMSNorm(2, eps=0.0)(torch.tensor([3.0, -3.0]))
        tensor([ 1., -1.], grad_fn=<RMSNormBackward>)
    """

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        group_size: int = 16,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_sizes("FP8RMSNorm", features=features, group_size=group_size)
        super().__init__()
        self.features, self.eps, self.group_size = features, eps, group_size
        self.weight = nn.Parameter(torch.ones(features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x (..., d), in x's type."""
        return functions.RMSNorm.apply(_checked(x, self.features, self), self.weight, self.eps, self.group_size)

    def extra_repr(self) -> str:
        """Return the settings for printing."""
        return f"{self.features}, eps={self.eps}, group_size={self.group_size}"


class FP8MLP(nn.Module):
    """The MLP of a transformer, linear - activation - linear, with every saved activation in FP8.

    Gated, as in Llama: down(activation(gate(x)) * up(x)). Not gated, as in GPT: down(activation(up(x))).

    Args:
        features: Size d of inputs and outputs, at least 1.
        hidden: Hidden width h, at least 1.
        activation: "silu", "gelu" or "relu".
        gated: Whether a second linear layer gates the first.
        bias: Whether the linear layers have biases.
        group_size: Entries that share a scale at the inputs of activation and product.
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Linear`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        InvalidInput: If a size is below 1 or the activation unknown; from `forward`, if the input is not floating point
            or not (..., d).

    Example:
        >>> block = FP8MLP(32, 64)
        >>> block(torch.zeros(5, 32)).shape
        torch.Size([5, 32])
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        activation: str = "silu",
        *,
        gated: bool = True,
        bias: bool = False,
        group_size: int = 16,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if activation not in functions.ACTIVATIONS:
            raise InvalidInput(f"activation must be one of {', '.join(functions.ACTIVATIONS)}; got {activation!r}")
        super().__init__()
        options: dict[str, Any] = {"bias": bias, "group_size": group_size, "generator": generator}
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.features, self.activation, self.group_size = features, activation, group_size
        self.gate = FP8Linear(features, hidden, **options, **place) if gated else None
        self.up = FP8Linear(features, hidden, **options, **place)
        self.down = FP8Linear(hidden, features, **options, **place)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., d) for x (..., d), in x's type or autocast's."""
        x = _compute_input(x, self.features, self)
        if self.gate is None:
            (up,) = _linear(x, self.group_size, self.up)
            return self.down(functions.Activation.apply(up, self.activation, self.group_size))
        gate, up = _linear(x, self.group_size, self.gate, self.up)
        gate = functions.Activation.apply(gate, self.activation, self.group_size)
        return self.down(functions.Multiply.apply(gate, up, self.group_size))
