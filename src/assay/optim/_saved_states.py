"""States that keep their own type when a state dict is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch

__all__ = ["restore_types"]


def restore_types(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], names: Iterable[str]) -> None:
    """Copy states from a state dict that the optimizer has just loaded, in the types that they were saved in.

    torch gives every state its parameter's type, and in half precision a running sum or mean would stand still.

    Args:
        optimizer: Its parameters are in the order of the state dict's.
        state_dict: What was loaded.
        names: The states to copy again.
    """
    saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for index, parameter in zip(saved, parameters, strict=True):
        if index in state_dict["state"]:
            values = {name: state_dict["state"][index][name] for name in names}
            optimizer.state[parameter] |= {n: v.detach().to(parameter.device, copy=True) for n, v in values.items()}
