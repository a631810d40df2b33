"""Pictures of groups of samples: images side by side, anything else as rows of a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["group_figure"]


def group_figure(groups: Mapping[str, Any], columns: int = 6) -> Figure:
    """Return a figure with one block per group; each image says its target and the change of its loss.

    Args:
        groups: By title, anything with `inputs` (k, ...), `targets` (k,) and `changes` (k,).
        columns: Images beside each other.
    """
    from matplotlib.figure import Figure

    shown = {title: _scaled(group.inputs, groups) for title, group in groups.items()}
    rows = max(-(-len(inputs) // columns) for inputs in shown.values())
    figure = Figure(figsize=(1.1 * columns, 1.4 * rows * len(groups)), layout="constrained")
    for block, (title, inputs) in zip(
        figure.subfigures(len(groups), 1, squeeze=False)[:, 0], shown.items(), strict=True
    ):
        block.suptitle(title)
        if inputs.ndim != 4:
            axes = block.subplots()
            axes.imshow(inputs.flatten(1).numpy(), aspect="auto", cmap="coolwarm")
            axes.set(xlabel="input", ylabel="sample")
            continue
        for axes in block.subplots(rows, columns, squeeze=False).flat:
            axes.axis("off")
        for i, (axes, image) in enumerate(zip(block.axes, inputs, strict=False)):
            axes.imshow(image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"{_label(groups[title].targets[i])} ({groups[title].changes[i]:+.2g})", fontsize=7)
    return figure


def _scaled(inputs: Tensor, groups: Mapping[str, Any]) -> Tensor:
    """Return inputs in [0, 1], scaled by all groups together; images of neither 1 nor 3 channels become grey."""
    values = torch.cat([group.inputs.flatten().double() for group in groups.values()])
    low, high = values.min(), values.max()
    scaled = ((inputs.double() - low) / (high - low if high > low else 1)).detach().cpu()
    if scaled.ndim == 3:
        scaled = scaled[:, None]
    return scaled if scaled.ndim != 4 or scaled.shape[1] in (1, 3) else scaled.mean(dim=1, keepdim=True)


def _label(target: Tensor) -> str:
    return str(target.item()) if target.numel() == 1 else ""
