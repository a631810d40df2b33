"""COATAdamW: AdamW whose moments are stored in FP8, each group of them stretched to fill the format's range.

Paper: "COAT: Compressing Optimizer States and Activations for Memory-Efficient FP8 Training" (arXiv:2410.19313),
section "Dynamic Range Expansion for Optimizer States". A step restores both moments, is AdamW's step with them

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    p <- p - lr (wd p + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps))

and quantizes the new moments after p has used them: rounding acts on the next steps only.

Shapes: a parameter of N entries has codes of its shape and ceil(N / group_size) scales and exponents per moment.
Departures: see `assay.compress.range_expansion`; and types that are not FP8 may be asked for, so that the same class is
AdamW with moments in bfloat16, or in float32 as in PyTorch.
Cost: 2.08 bytes of state per parameter with groups of 128, against AdamW's 8. Work is done in blocks of 131072 entries,
so temporaries stay at a few MiB whatever the parameters' size (but for a parameter that is not contiguous, which is
copied). In eager PyTorch on a CPU a step costs about 13 of AdamW's (bench/coat.py), most of it for powers and
casts; it compiles whole, a parameter instead of a block at a time, which on a CPU takes long and makes it no faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from assay.compress.fp8_scaling import FORMATS
from assay.compress.range_expansion import ExpandedGroups, dequantize_expanded, quantize_expanded
from assay.errors import InvalidInput
from assay.optim._dense import refuse_sparse

__all__ = ["COATAdamW"]

BLOCK = 2**17  # half a MiB in float32, which stays in a CPU's cache
MOMENTS = ("exp_avg", "exp_avg_sq")
TYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*FORMATS, torch.bfloat16, torch.float32)}


class COATAdamW(torch.optim.Optimizer):
    """AdamW with moments in FP8 and dynamic range expansion.

    Parameter groups may differ in every option, so embeddings, say, can keep float32 moments. Parameters of any real
    floating-point type; those below float32 are updated in float32 and rounded once per step.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate, 0 or more.
        betas: Decay rates of the two moments, in [0, 1).
        eps: Added to the denominator, 0 or more.
        weight_decay: Decoupled weight decay, 0 or more.
        group_size: Entries that share a scale and an exponent.
        expand: False for plain FP8 with a scale per group, without expansion.
        exp_avg_dtype: "float8_e4m3fn", "float8_e5m2", "bfloat16" or "float32" (or the `torch.dtype`) of the mean.
        exp_avg_sq_dtype: The same for the mean square.

    Raises:
        InvalidInput: On an option out of its range or a complex parameter; from `step`, on a sparse gradient; from
            `load_state_dict`, on the state of another kind of optimizer.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1000))
        >>> optimizer = COATAdamW([weight], lr=0.1)
        >>> weight.grad = torch.ones(1000)
        >>> optimizer.step()
        >>> sum(value.nbytes for name, value in optimizer.state[weight].items() if name != "step")
        2080
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        group_size: int = 128,
        expand: bool = True,
        exp_avg_dtype: str | torch.dtype = "float8_e4m3fn",
        exp_avg_sq_dtype: str | torch.dtype = "float8_e4m3fn",
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        storage = {"group_size": group_size, "expand": expand}
        types = {"exp_avg_dtype": exp_avg_dtype, "exp_avg_sq_dtype": exp_avg_sq_dtype}
        super().__init__(params, options | storage | types)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own where it has them.

        Raises:
            InvalidInput: On an option out of its range or a complex parameter.
        """
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except InvalidInput:
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients that the parameters hold.

        Args:
            closure: Evaluates the loss and its gradients; its value is returned.

        Raises:
            InvalidInput: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        refuse_sparse(parameter, "COATAdamW")
        state = self.state[parameter]
        if not state:
            state.update(_initial_state(parameter, group))
        state["step"] += 1
        step = int(state["step"])
        # views where the tensors are contiguous
        flat, flat_gradient = parameter.reshape(-1), gradient.reshape(-1)
        working = torch.promote_types(parameter.dtype, torch.float32)
        for block in _blocks(flat.numel(), group["group_size"]):
            mean, square = (_load(state, name, block, group["group_size"], working) for name in MOMENTS)
            values = flat[block].to(working)
            _adamw(values, flat_gradient[block].to(working), mean, square, step, group)
            flat[block] = values
            for name, moment in zip(MOMENTS, (mean, square), strict=True):
                _store(state, name, block, moment, group)
        if not parameter.is_contiguous():
            parameter.copy_(flat.view(parameter.shape))

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, bit for bit.

        Raises:
            InvalidInput: If it is the state of another kind of optimizer.
        """
        loaded: dict[str, Any] = {}

        def set_states_aside(optimizer: torch.optim.Optimizer, whole: dict[str, Any]) -> dict[str, Any]:
            # torch would cast each of them to its parameter's type
            _check_saved(whole)
            loaded.update(whole)
            return {**whole, "state": {}}

        handle = self.register_load_state_dict_pre_hook(set_states_aside)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        saved = (index for group in loaded["param_groups"] for index in group["params"])
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        for index, parameter in zip(saved, parameters, strict=True):
            if index in loaded["state"]:
                self.state[parameter] = {
                    name: value.clone() if name == "step" else value.to(parameter.device, copy=True)
                    for name, value in loaded["state"][index].items()
                }

    def __getstate__(self) -> dict[str, Any]:
        # torch 2.13 pickles float8 tensors but cannot read them back, so their bytes are pickled
        state = {parameter: _with_codes(values, None) for parameter, values in self.state.items()}
        return {**super().__getstate__(), "state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.state.get(parameter):
                    self.state[parameter] = _with_codes(self.state[parameter], group)


def _with_codes(values: dict[str, Any], group: dict[str, Any] | None) -> dict[str, Any]:
    """Return a parameter's state with its FP8 moments as bytes or, given the group, in their own type again."""
    codes = {}
    for name in MOMENTS:
        if f"{name}_scale" in values:
            codes[name] = values[name].view(TYPES[group[f"{name}_dtype"]] if group else torch.uint8)
    return {**values, **codes}


def _check(group: dict[str, Any]) -> None:
    for name in (f"{moment}_dtype" for moment in MOMENTS):
        group[name] = str(group[name]).removeprefix("torch.")
        if group[name] not in TYPES:
            raise InvalidInput(f"{name} must be one of {', '.join(TYPES)}; got {group[name]!r}")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise InvalidInput(f"betas must be two numbers in [0, 1), not {group['betas']!r}")
    for name in ("lr", "eps", "weight_decay"):
        if not 0 <= group[name] < math.inf:
            raise InvalidInput(f"{name} must be a finite number, 0 or more, not {group[name]!r}")
    if isinstance(group["group_size"], bool) or not isinstance(group["group_size"], int) or group["group_size"] < 1:
        raise InvalidInput(f"group_size must be a whole number of at least 1, not {group['group_size']!r}")
    for parameter in group["params"]:
        if not parameter.is_floating_point():
            raise InvalidInput(f"COATAdamW needs real floating-point parameters, not {parameter.dtype}")


def _check_saved(state_dict: dict[str, Any]) -> None:
    if not all({"group_size", "expand", "exp_avg_dtype"} <= set(group) for group in state_dict["param_groups"]):
        raise InvalidInput(
            "this state dict is no COATAdamW's: its groups lack group_size, expand or exp_avg_dtype; start with fresh "
            "moments instead"
        )


def _initial_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    state = {"step": torch.tensor(0.0)}
    count = math.ceil(parameter.numel() / group["group_size"])
    for name in MOMENTS:
        dtype = TYPES[group[f"{name}_dtype"]]
        state[name] = torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)
        if dtype in FORMATS:
            state[f"{name}_scale"] = torch.zeros(count, dtype=torch.float32, device=parameter.device)
            state[f"{name}_exponent"] = torch.ones(count, dtype=torch.uint8, device=parameter.device)
    return state


def _blocks(entries: int, group_size: int) -> Iterator[slice]:
    """Yield slices of whole groups."""
    # Inductor cannot write a slice of float8 on a CPU, so compiled all is one block
    size = entries if torch.compiler.is_compiling() else max(1, BLOCK // group_size) * group_size
    for start in range(0, entries, size):
        yield slice(start, min(start + size, entries))


def _groups_of(block: slice, group_size: int) -> slice:
    return slice(block.start // group_size, math.ceil(block.stop / group_size))


def _load(state: dict[str, Tensor], name: str, block: slice, group_size: int, working: torch.dtype) -> Tensor:
    """Return a block of a moment in the working type; where it is stored in that type, a view."""
    stored = state[name].view(-1)[block]
    if f"{name}_scale" not in state:
        return stored.to(working)
    groups = _groups_of(block, group_size)
    expanded = ExpandedGroups(stored, state[f"{name}_scale"][groups], state[f"{name}_exponent"][groups])
    return dequantize_expanded(expanded, group_size, working)


def _store(state: dict[str, Tensor], name: str, block: slice, moment: Tensor, group: dict[str, Any]) -> None:
    stored = state[name].view(-1)[block]
    if f"{name}_scale" not in state:
        stored.copy_(moment)
        return
    groups = _groups_of(block, group["group_size"])
    codes, scale, exponent = quantize_expanded(moment, group["group_size"], stored.dtype, expand=group["expand"])
    stored.copy_(codes)
    state[f"{name}_scale"][groups] = scale
    state[f"{name}_exponent"][groups] = exponent


def _adamw(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, group: dict[str, Any]) -> None:
    """Make AdamW's step in place on a block, in the order of operations of `torch.optim.AdamW`."""
    beta1, beta2 = group["betas"]
    lr = float(group["lr"])
    parameter.mul_(1 - lr * group["weight_decay"])
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    parameter.addcdiv_(mean, denominator, value=-lr / (1 - beta1**step))
