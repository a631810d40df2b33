"""Finds the blocks of a network: what a local learning rule trains one by one.

A block is one layer with weights together with the activations, pools and normalisations that follow it. Blocks map
tensor to tensor and are applied in order; a final `nn.Linear` is the head, which local rules leave alone because they
bring their own readouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn.physical_transform import PhysicalTransform

__all__ = ["Blocks", "blocks"]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network in order; `modules` are views on it, not copies.

    Args:
        names: One per block, unique.
        modules: What each block computes.
        head: The network's last linear layer, None if it has none.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    head: nn.Linear | None

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return every block's output by name."""
        found = {}
        for name, module in zip(self.names, self.modules, strict=True):
            found[name] = x = module(x)
        return found


def blocks(model: nn.Module, names: Sequence[str] | None = None) -> Blocks:
    """Split a network into blocks.

    Args:
        model: An `nn.Sequential`; or any module, if the blocks are named.
        names: Submodules that are the blocks, in the order of their application, such as `["encoder.0", "encoder.1"]`;
            None groups an `nn.Sequential`'s children so that each block begins with a layer that has weights.

    Returns:
        The blocks, and the head if the children end in an `nn.Linear`.

    Raises:
        InvalidInput: If the model is no `nn.Sequential`, or has a forward of its own, and no names are given; if a name
            is unknown, or nothing is left to train beside the head.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> blocks(net).names, blocks(net).head
        (('1', '3'), Linear(in_features=3, out_features=2, bias=True))
    """
    found = _group_children(model) if names is None else Blocks(tuple(names), _named(model, names), None)
    if not found.modules:
        raise InvalidInput("the model has no blocks to train locally: it needs a layer with weights before its head")
    return found


def _named(model: nn.Module, names: Sequence[str]) -> tuple[nn.Module, ...]:
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            near = ", ".join(child for child, _ in model.named_children())
            raise InvalidInput(f"the model has no submodule {name!r}; its children are {near}")
    if len(set(names)) != len(names):
        raise InvalidInput(f"each block must be named once, got {', '.join(names)}")
    return tuple(modules[name] for name in names)


def _has_weights(module: nn.Module) -> bool:
    """Vectors are scales and shifts of a normalisation, which belongs to the block before it.

    Weights inside a physical layer are those of a simulation, as fixed as real hardware.
    """
    if isinstance(module, PhysicalTransform):
        return False
    own = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    return own or any(_has_weights(child) for child in module.children())


def _group_children(model: nn.Module) -> Blocks:
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        raise InvalidInput(
            f"a rule that trains block by block needs an nn.Sequential without a forward of its own, not "
            f"{type(model).__name__}; or name the blocks: blocks=['layer1', 'layer2']"
        )
    children = list(model.named_children())
    head = children[-1][1] if children and isinstance(children[-1][1], nn.Linear) else None
    names: list[str] = []
    members: list[list[nn.Module]] = [[]]
    for name, child in children[: len(children) - (head is not None)]:
        if _has_weights(child):
            if names:
                members.append([])
            names.append(name)
        members[-1].append(child)
    grouped = (group[0] if len(group) == 1 else nn.Sequential(*group) for group in members)
    return Blocks(tuple(names), tuple(grouped) if names else (), head)


def block_widths(found: Blocks, model: nn.Module, input_shape: Sequence[int] | None = None) -> tuple[int, list[int]]:
    """Return the number of entries of one input and of each block's output.

    Args:
        found: The blocks.
        model: The network they come from; its attribute `input_shape`, if there is one, is the default.
        input_shape: Shape of one input; without it and the attribute, the first `nn.Linear`'s input is taken.

    Raises:
        InvalidInput: If the shape is unknown or the blocks do not take it.
    """
    shape = shape_of_input(model, found.modules[0], input_shape)
    like = next(found.modules[0].parameters())
    x = torch.zeros(2, *shape, dtype=like.dtype, device=like.device)
    modes = [(m, m.training) for block in found.modules for m in block.modules()]
    try:
        for block in found.modules:
            block.eval()
        with torch.no_grad():
            return x[0].numel(), [output[0].numel() for output in found.outputs(x).values()]
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"the blocks do not take inputs of shape {tuple(shape)}: {reason}") from error
    finally:
        for module, mode in modes:
            module.training = mode


def shape_of_input(model: nn.Module, first_block: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one input: the given one, the model's attribute `input_shape`, or what an `nn.Linear` takes.

    Raises:
        InvalidInput: If none of them tells.
    """
    shape = given if given is not None else getattr(model, "input_shape", None)
    if shape is not None:
        return tuple(shape)
    first = next((m for m in first_block.modules() if isinstance(m, (nn.Linear, nn.Conv2d))), None)
    if not isinstance(first, nn.Linear):
        raise InvalidInput("the shape of one input is unknown; give input_shape=(channels, height, width)")
    return (first.in_features,)


def trainable(*modules: nn.Module) -> list[nn.Parameter]:
    """Return the modules' parameters that require gradients."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]
