"""Projection heads: what a contrastive loss sees of an encoder's features, and what is thrown away after training.

Xue et al., "Investigating the Benefits of Projection Head for Representation Learning" (arXiv:2403.11391): features
grow more unequal from layer to layer, so that those below the head keep what the loss hardly needs. The fixed
reweighting head, which replaces a trained one, makes them unequal by itself, with one number kappa >= 1:

    h(z)_i = kappa^(-i) z_i,   i = 0 ... D-1

Shapes: inputs of the encoder (B, ...), its features z (B, D), the head's outputs (B, O).

Departures: none known; the paper's normalisation of the weights is not settled here, and a loss that normalises its
input, as contrastive ones do, does not depend on it. Cost of the fixed head: B D multiplications.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["FixedReweightingHead", "WithProjectionHead", "projection_head"]

KINDS = ("none", "linear", "mlp", "fixed")


class FixedReweightingHead(nn.Module):
    """A diagonal head with geometrically falling weights, without parameters.

    Args:
        dim: D.
        kappa: Ratio of a weight to the next one, at least 1; 1 is no head. The first weight is kappa^(D-1) times the
            last, so 1.05 spans a factor of 490 over 128 features.

    Raises:
        InvalidInput: If a number is out of range, or the last weight would vanish in float32.

    Example:
        >>> FixedReweightingHead(3, kappa=2.0)(torch.ones(1, 3))
        tensor([[1.0000, 0.5000, 0.2500]])
    """

    weight: Tensor

    def __init__(self, dim: int, kappa: float = 1.05) -> None:
        super().__init__()
        if dim < 1 or not 1 <= kappa < math.inf:
            raise InvalidInput(f"expected dim >= 1 and a finite kappa >= 1; got {dim} and {kappa}")
        if (dim - 1) * math.log10(kappa) > 30:
            raise InvalidInput(f"kappa = {kappa} over {dim} features spans more than 1e30; take a smaller kappa")
        self.kappa = kappa
        exponents = torch.arange(dim, dtype=torch.float64)
        self.register_buffer("weight", (kappa**-exponents).to(torch.get_default_dtype()))

    def forward(self, z: Tensor) -> Tensor:
        """Return the reweighted features (..., D)."""
        if z.shape[-1] != len(self.weight):
            raise InvalidInput(f"expected {len(self.weight)} features, got {tuple(z.shape)}")
        return z * self.weight.to(z.dtype)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"dim={len(self.weight)}, kappa={self.kappa}"


def projection_head(kind: str, dim: int, *, kappa: float = 1.05, generator: torch.Generator | None = None) -> nn.Module:
    """Return a head that keeps the width, so that features before and after it can be compared.

    Args:
        kind: "none" (identity), "linear", "mlp" (linear, ReLU, linear) or "fixed".
        dim: D.
        kappa: Of the fixed head.
        generator: Draws the weights as `nn.Linear` does; None is torch's global generator.

    Raises:
        InvalidInput: If there is no such kind, or a number is out of range.

    Example:
        >>> projection_head("mlp", 8)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """
    if kind not in KINDS or dim < 1:
        raise InvalidInput(f"kind must be one of {', '.join(KINDS)} and dim at least 1; got {kind!r} and {dim}")
    if kind == "none":
        return nn.Identity()
    if kind == "fixed":
        return FixedReweightingHead(dim, kappa)
    if kind == "linear":
        return _linear(dim, generator)
    return nn.Sequential(_linear(dim, generator), nn.ReLU(), _linear(dim, generator))


def _linear(dim: int, generator: torch.Generator | None) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, dim, dim)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(layer.bias, -(dim**-0.5), dim**-0.5, generator=generator)
    return layer


class WithProjectionHead(nn.Module):
    """An encoder with a head on top: the loss takes `model(x)`, everything afterwards `model.features(x)`.

    Args:
        encoder: Maps a batch to features (B, D).
        head: Maps features to what the loss sees, such as `projection_head("mlp", D)`.

    Example:
        >>> model = WithProjectionHead(nn.Linear(4, 2), FixedReweightingHead(2, kappa=2.0))
        >>> x = torch.ones(1, 4)
        >>> bool((model(x) == model.features(x) * torch.tensor([1.0, 0.5])).all())
        True
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output (B, O)."""
        projected: Tensor = self.head(self.encoder(x))
        return projected

    def features(self, x: Tensor) -> Tensor:
        """Return the features below the head (B, D)."""
        found: Tensor = self.encoder(x)
        return found
