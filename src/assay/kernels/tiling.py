"""`tiled`: a module that acts on each position alone runs on one part of the sequence after the other.

Source: TiledMLP of Liger Kernel (arXiv:2410.10989, later versions), after the tiled computation of Arctic Long Sequence
Training (arXiv:2506.13996). What the module keeps for its backward pass exists for one part at a time: backward
recomputes each part from its slice of the input.

Cost: a second forward pass during backward; memory kept: the input, and inside backward one part's activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from assay.errors import InvalidInput
from assay.kernels._swap import add_recipe, recipes_of
from assay.kernels.patching import Change, Patch

__all__ = ["tiled"]


@dataclass(frozen=True)
class Tiles:
    """The recipe: split the input, run the parts, join the results."""

    shards: int
    dim: int
    kernel: str = "tiled"

    def forward(self, base: type[nn.Module]) -> Callable[..., Any]:
        """Return a forward of one tensor; what else it is called with goes to every part."""

        def forward(module: nn.Module, input: Tensor, *rest: Any, **options: Any) -> Tensor:
            parts = input.chunk(self.shards, self.dim)
            if torch.is_grad_enabled():
                results = [
                    checkpoint(base.forward, module, part, *rest, use_reentrant=False, **options) for part in parts
                ]
            else:
                results = [base.forward(module, part, *rest, **options) for part in parts]
            return torch.cat(results, self.dim)

        return forward


def tiled(module: nn.Module, shards: int, *, dim: int = -2) -> Patch:
    """Let a module work on one part of its input after the other, recomputing each part in backward.

    For modules whose output at a position depends on the input at this position alone, such as the MLP of a
    transformer block; anything that mixes positions would compute something else. The module is changed in place:
    its parameters and state-dict keys stay. Dropout inside draws other numbers than in one pass.

    Args:
        module: Takes a tensor first and returns one of the same size along `dim`.
        shards: Into how many parts the input goes (fewer where it is too short), at least 1.
        dim: Along which to split: by default the last but one, the positions of (batch, positions, features).

    Returns:
        The record of the change; `.undo()` or leaving a `with` block takes it back.

    Raises:
        InvalidInput: If the module is tiled already, or `shards` is below 1.

    Example:
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
        >>> with tiled(mlp, 4) as change:
        ...     mlp(torch.randn(2, 10, 8)).shape
        torch.Size([2, 10, 8])
    """
    if shards < 1:
        raise InvalidInput(f"tiled: shards must be at least 1, not {shards}")
    if any(isinstance(recipe, Tiles) for recipe in recipes_of(module)):
        raise InvalidInput(f"tiled: this {type(module).__name__} is tiled already; undo that first")
    change = Change(module, "", Tiles(shards, dim))
    add_recipe(change.module, change.recipe)
    return Patch([change])
