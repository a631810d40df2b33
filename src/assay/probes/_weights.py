"""The weight matrices of a network by layer, as training left them: frozen ones too, tied ones once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from torch import Tensor, nn
from torch.nn.utils import parametrize

from assay.errors import InvalidInput

__all__ = ["weight_matrices"]


def weight_matrices(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """Return weights with at least two dimensions by layer.

    A layer is called by its parameter's name without the ending ".weight" ("model" for the model's own). Where a layer
    is parametrised (weight norm, spectral norm) it is the weight that the forward pass uses.

    Args:
        model: The network.
        layers: Names; None takes every matrix with two rows and columns or more, a tied one under its first name.

    Raises:
        InvalidInput: If a name is unknown, there is no weight matrix, or one has NaN or infinite entries.
    """
    found = dict(_named(model))
    if layers is None:
        first = {id(weight): name for name, weight in reversed(found.items())}
        found = {name: weight for name, weight in found.items() if first[id(weight)] == name}
        if not found:
            raise InvalidInput(f"{type(model).__name__} has no weight matrix to measure")
    else:
        for name in layers:
            if name not in found:
                near = get_close_matches(name, found, n=3, cutoff=0.4) or list(found)[:8]
                raise InvalidInput(f"no weight matrix {name!r} in the model; there are {', '.join(near) or 'none'}")
        found = {name: found[name] for name in layers}
    for name, weight in found.items():
        if not (weight.amin().isfinite() and weight.amax().isfinite()):  # NaN passes through both, in one cheap pass
            bad = int((~weight.isfinite()).sum())
            raise InvalidInput(f"layer {name!r} has {bad} NaN or infinite weights and so no spectrum")
    return {name: weight.detach() for name, weight in found.items()}


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" in path.split("."):
            continue
        tensors = dict(module._parameters)
        if parametrize.is_parametrized(module):
            tensors |= {name: getattr(module, name) for name in module.parametrizations}
        for name, weight in tensors.items():
            if weight is None or not weight.is_floating_point() or weight.ndim < 2 or len(weight) < 2:
                continue
            if weight[0].numel() > 1:
                full = f"{path}.{name}" if path else name
                yield full.removesuffix(".weight") if full != "weight" else "model", weight
