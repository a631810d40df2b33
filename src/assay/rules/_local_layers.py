"""A network as rules see it that send each hidden layer an error of its own: local layers and a linear output layer.

A block is cut behind its last layer, activation or normalisation: the core up to there is the local layer, whose output
y_i = core_i(sg(h_{i-1})) gets the error, and the tail (pools, flattening, dropout) leads on, h_i = tail_i(y_i).

    Linear:      delta = e * phi'(z);     dW = delta^T h_{i-1},   db = sum delta
    recurrent:   y_t = tanh(W_x x_t + W_h y_{t-1} + b);   delta_t = e_t * (1 - y_t^2);   dW_x = sum_t delta_t^T x_t,
                 dW_h = sum_t delta_t^T y_{t-1}: y_{t-1} is a constant input, all steps at once

are written out without autograd; any other layer (convolutions too, where that is as fast) is differentiated by
autograd on its detached input, the GRU again with all steps at once on constant states.

Shapes: h_{i-1} (B, ...), y_i and its error (B, *units) or (B, T, *units) of a recurrent layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._recurrence import LastStep, Recurrence
from assay.rules._held import hold
from assay.rules.splitting import Blocks, blocks, shape_of_input, trainable

__all__ = ["LocalLayer", "LocalNetwork", "leaves"]

Pull = Callable[[Tensor], None]

PASSIVE = (
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    LastStep,
)
NON_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softplus)
# The activation's derivative as a function of its value.
SLOPES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Tanh: lambda y: 1 - y * y,
    nn.ReLU: lambda y: (y > 0).to(y.dtype),
    nn.Sigmoid: lambda y: y * (1 - y),
}


def leaves(module: nn.Module) -> list[nn.Module]:
    """Return what nested `nn.Sequential`s apply, in order; a subclass with a forward of its own stays whole."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return [module]
    return [leaf for child in module for leaf in leaves(child)]


@dataclass(frozen=True)
class LocalLayer:
    """One block, cut into the core that learns and the tail that leads on."""

    name: str
    core: nn.Sequential
    tail: nn.Sequential

    @staticmethod
    def of(name: str, block: nn.Module) -> LocalLayer:
        """Cut a block."""
        parts = leaves(block)
        end = next(i for i in range(len(parts), 0, -1) if i == 1 or not isinstance(parts[i - 1], PASSIVE))
        return LocalLayer(name, nn.Sequential(*parts[:end]), nn.Sequential(*parts[end:]))

    @cached_property
    def non_negative(self) -> bool:
        """Whether the core's output has no negative entries."""
        return isinstance(self.core[-1], NON_NEGATIVE)

    @cached_property
    def recurrent(self) -> bool:
        """Whether the core's output has a dimension of steps after that of samples."""
        return isinstance(self.core[-1], Recurrence)

    @cached_property
    def tail_in_place(self) -> bool:
        """Whether the tail may overwrite what it is given."""
        return any(getattr(module, "inplace", False) for module in self.tail)

    def run(self, h: Tensor) -> tuple[Tensor, Pull]:
        """Return y = core(h), detached, and the function that takes the error dloss/dy and adds to `.grad`."""
        if self.recurrent:
            return self._run_recurrent(h)
        if (split := self._closed_form()) is not None:
            return self._run_linear(h, *split)
        y = self.core(h.detach())
        return y.detach(), partial(_pull_back, y)

    def _closed_form(self) -> tuple[nn.Linear, int, Callable[[Tensor], Tensor] | None] | None:
        """Return the linear layer, its place and its activation's slope if the core is that and nothing else."""
        *before, last = list(self.core)
        slope = SLOPES.get(type(last))
        if slope is not None and before:
            *before, last = before
        plain = type(last) is nn.Linear and all(isinstance(module, nn.Flatten) for module in before)
        if not plain or not isinstance(last, nn.Linear):
            return None
        # Hooks (pruning, spectral norm) compute the weights from parameters with other names: left to autograd.
        return (last, len(before), slope) if last._parameters.keys() >= {"weight", "bias"} else None

    @torch.no_grad()
    def _run_linear(
        self, h: Tensor, layer: nn.Linear, place: int, slope: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Pull]:
        h = self.core[:place](h)
        y = self.core[place:](h)
        held = hold(h, y)

        @torch.no_grad()
        def pull(error: Tensor) -> None:
            delta = (error if slope is None else error * slope(y)).flatten(0, -2)
            _add(layer.weight, delta.T @ h.flatten(0, -2))
            _add(layer.bias, delta.sum(0))
            held.clear()

        return y, pull

    def _run_recurrent(self, h: Tensor) -> tuple[Tensor, Pull]:
        with torch.no_grad():
            x = self.core[:-1](h)
            y = self.core[-1](x)
        previous = F.pad(y, (0, 0, 1, 0))[:, :-1]
        layer: nn.RNNBase = self.core[-1].cell  # type: ignore[assignment]
        weights = [layer.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        if isinstance(layer, nn.GRU):
            again = torch.gru_cell(x.flatten(0, 1), previous.flatten(0, 1), *weights).view_as(y)
            return y, partial(_pull_back, again)
        held = hold(x, y)

        @torch.no_grad()
        def pull(error: Tensor) -> None:
            delta = (error * (1 - y * y)).flatten(0, 1)
            total = delta.sum(0)
            gradients = delta.T @ x.flatten(0, 1), delta.T @ previous.flatten(0, 1), total, total.clone()
            for weight, gradient in zip(weights, gradients, strict=True):
                _add(weight, gradient)
            held.clear()

        return y, pull


def _pull_back(y: Tensor, error: Tensor) -> None:
    # Under `torch.no_grad()` this raises, as backpropagation does; a frozen layer just has nothing to learn.
    if y.requires_grad or not torch.is_grad_enabled():
        torch.autograd.backward(y, error)


def _add(parameter: Tensor | None, gradient: Tensor) -> None:
    """Accumulate as autograd does."""
    if parameter is None or not parameter.requires_grad:
        return
    gradient = gradient.to(parameter.dtype)
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


@dataclass(frozen=True)
class LocalNetwork:
    """The local layers of a network in order, the output layer, and the shape of each local layer's units."""

    layers: tuple[LocalLayer, ...]
    head: nn.Linear
    units: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(
        model: nn.Module, num_classes: int, names: Sequence[str] | None, input_shape: Sequence[int] | None
    ) -> LocalNetwork:
        """Find the layers.

        Args:
            model: An `nn.Sequential`; or any module, if the blocks are named, the output layer last.
            num_classes: Number of classes C, at least 2.
            names: Blocks and output layer by name.
            input_shape: Shape of one input, where neither the model nor its first layer tells.

        Raises:
            InvalidInput: If the model does not end in a linear layer of C outputs behind at least one block, or does
                not take inputs of that shape.
        """
        if num_classes < 2:
            raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
        found = blocks(model, names)
        if names is not None and len(found.modules) > 1 and isinstance(found.modules[-1], nn.Linear):
            found = Blocks(found.names[:-1], found.modules[:-1], found.modules[-1])
        head = found.head
        if head is None or head.out_features != num_classes:
            what = "none" if head is None else f"{head.out_features} outputs"
            raise InvalidInput(
                f"the network must end in an nn.Linear of {num_classes} outputs, one per class; it has {what}"
                + ("" if names is None else ". Name the output layer last, behind at least one block")
            )
        layers = tuple(LocalLayer.of(*pair) for pair in zip(found.names, found.modules, strict=True))
        return LocalNetwork(layers, head, _units(layers, head, model, input_shape))

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the trained parameters of each layer, the output layer's last."""
        return [*(trainable(layer.core) for layer in self.layers), trainable(self.head)]

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return every block's output by name."""
        found = {}
        for layer in self.layers:
            found[layer.name] = x = layer.tail(layer.core(x))
        return found


def _units(
    layers: Sequence[LocalLayer], head: nn.Linear, model: nn.Module, input_shape: Sequence[int] | None
) -> tuple[tuple[int, ...], ...]:
    """Return the shape of one sample's units in each layer, by a run on zeros in evaluation mode."""
    shape = shape_of_input(model, layers[0].core, input_shape)
    modes = [(m, m.training) for layer in layers for part in (layer.core, layer.tail) for m in part.modules()]
    x, units = head.weight.new_zeros(2, *shape), []
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            for layer in layers:
                y = layer.core(x)
                units.append(tuple(y.shape[2 if layer.recurrent else 1 :]))
                x = layer.tail(y)
            head(x.flatten(1))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"the blocks do not take inputs of shape {shape}: {reason}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    return tuple(units)
