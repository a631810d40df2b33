"""A physical system as a layer: any callable without a gradient, and the ways to train around or through it.

Papers: Momeni et al., arXiv:2304.11042, train the digital layers beside the system and need no gradient of it (mode
"block"); the schemes it is compared with use a digital model m of the system p: in-silico training differentiates m
alone and deploys on p (mode "model"), physics-aware training (Wright et al., arXiv:2104.13386) runs p forward and
differentiates m at the same input (mode "straight-through"):

    block: p(h), no gradient;  model: m(h) in training, p(h) in evaluation;  straight-through: p(h) + m(h) - sg(m(h))

With the system itself as its model, "model" is ideal backpropagation through a known system.

Shapes: h (B, n) -> (B, m). Departures: none.
Cost: one call of the system per batch; "model" and "straight-through" add the model's forward and backward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["PhysicalTransform"]

MODES = ("block", "model", "straight-through")


class PhysicalTransform(nn.Module):
    """A black box as a layer.

    Args:
        system: Called without gradients on a copy of a batch (B, n); returns (B, m), as a tensor or an array, which is
            copied.
        out_features: m.
        model: Differentiable model of the system, called like it. If a module, its parameters are frozen: it is
            fitted to the system beforehand.
        mode: "block", "model" or "straight-through". In evaluation mode the output is the system's in all of them, and
            its gradient the model's where there is a model.
        numpy: Whether the system takes a NumPy array instead of a tensor.

    Attributes:
        calls: How often the system was called.
        rows: How many samples went through it.

    Raises:
        InvalidInput: On an unknown mode, or one that needs a model where there is none; in the forward pass, if the
            system returns another shape; in the backward pass, if a gradient would have to cross the system and there
            is no model.

    Example:
        >>> layer = PhysicalTransform(lambda h: h.round(), out_features=2)
        >>> layer(torch.tensor([[0.2, 1.7]])), layer.calls
        (tensor([[0., 2.]]), 1)
    """

    def __init__(
        self,
        system: Callable[[Any], Any],
        out_features: int,
        model: Callable[[Tensor], Tensor] | None = None,
        mode: str = "block",
        numpy: bool = False,
    ) -> None:
        if mode not in MODES:
            raise InvalidInput(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if mode != "block" and model is None:
            raise InvalidInput(f"mode {mode!r} differentiates a model of the system; give model=")
        super().__init__()
        self.system, self.model, self.out_features, self.mode, self.numpy = system, model, out_features, mode, numpy
        self.calls = self.rows = 0
        for module in (system, model):
            if isinstance(module, nn.Module):
                module.requires_grad_(False)

    def forward(self, h: Tensor) -> Tensor:
        """Return the layer's output (B, m)."""
        if self.mode == "model" and self.training:
            assert self.model is not None
            return self.model(h)
        measured = self.measure(h)
        if not (h.requires_grad and torch.is_grad_enabled()):
            return measured
        if self.model is None or (self.mode == "block" and self.training):
            blocked: Tensor = _NoGradient.apply(h, measured)
            return blocked
        modelled = self.model(h)
        # The difference is exactly 0: the value stays the system's.
        return measured + (modelled - modelled.detach())

    @torch.no_grad()
    def measure(self, h: Tensor) -> Tensor:
        """Run the system on a batch (B, n) and return what comes out (B, m), without gradient.

        Raises:
            InvalidInput: If the system returns another shape.
        """
        self.calls, self.rows = self.calls + 1, self.rows + len(h)
        # Drivers may work in place on what they get and return a buffer of their own again and again.
        given = h.detach().clone()
        found = self.system(given.cpu().numpy() if self.numpy else given)
        measured = found if isinstance(found, Tensor) else torch.from_numpy(np.ascontiguousarray(found))
        measured = measured.to(h.device, h.dtype, copy=True)
        if measured.shape != (len(h), self.out_features):
            raise InvalidInput(
                f"the system gave {tuple(measured.shape)} for {len(h)} samples; expected ({len(h)}, "
                f"{self.out_features}): one row per sample and out_features columns"
            )
        return measured

    def extra_repr(self) -> str:
        """Show size and mode."""
        return f"out_features={self.out_features}, mode={self.mode!r}"


class _NoGradient(torch.autograd.Function):
    """The measured value, with a backward pass that refuses."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, measured: Tensor) -> Tensor:
        return measured.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise InvalidInput(
            "no gradient crosses a physical system: train with a local rule such as PhysicalForward, or give "
            "PhysicalTransform a model= of the system and mode='straight-through'"
        )
