"""StableSPAM: Adam with clipping against a running maximum, gradient norms held steady, and moments reset now and then.

Paper: "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (arXiv:2502.17055), algorithm 1; the order of
operations is the official code's. Each tensor's gradient G goes, at its step t = 1, 2 ..., through

    s  = eta_min + (1 - eta_min) (1 + cos(pi t / (T + 1))) / 2, with T total steps; 1 without
    AdaClip  M <- c3 M + (1 - c3) max|G|,  M' = M / (1 - c3^t);  G_i <- G_i M' / max|G| where |G_i| > M'
    AdaGN    a = c1 s,  n <- a n + (1 - a) |G|,  q <- c2 q + (1 - c2) |G|^2
             G <- G / |G| * (n / (1 - a^t)) / (sqrt(q / (1 - c2^t)) + eps)
    MoRet    every R steps m, v <- 0 and the count k of steps since, for Adam's bias corrections, starts again
    Adam     with betas (b1 s, b2) and count k, and decoupled weight decay

Shapes: tensors of any shape; M, n and q are a number per tensor, (c1, c2, c3) = `gammas`.

Departures. The official code has one count for everything and sets it to 1 at a reset, while M, n and q stay: M' is
then up to 1 / (1 - c3^2) times too large, and AdaClip nearly off for good; also the old moments serve one step more.
Here t goes on and moments are cleared first; reset="official" is the official code. Steps are counted per tensor, not
per optimizer: they differ where gradients are missing. After T steps s stays at eta_min instead of rising
again. Gradients are left as they are; the official code clips them in place.
Cost: Adam's state and three numbers per tensor; on top of Adam's time, the reading of each gradient twice and the
writing of it once, and two passes more over tensors with something to clip.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._numbers import Numbers, add_quotients, add_squares, clear, largest_entries, numbers, write
from assay.optim._saved_states import restore_types
from assay.optim._stepping import MultiTensorOptimizer, norms

__all__ = ["StableSPAM"]

NUMBERS = ("peak", "norm", "norm_sq")  # M, n and q


class StableSPAM(MultiTensorOptimizer):
    """Adam for training where gradients spike, such as in 4-bit.

    Groups may differ in every option. Of a complex parameter, real and imaginary parts are entries of their own. A
    gradient that is not finite makes its tensor NaN, as in `torch.optim.Adam`, and its running numbers too; so does one
    whose squared norm overflows (in float32 a norm of 2e19, after clipping), as in the official code.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate, 0 or more; a float or a tensor of one element.
        betas: Decay rates of the two moments, in [0, 1).
        gammas: Decay rates (c1, c2, c3) of the norm, the squared norm and the largest entry, in [0, 1).
        reset_every: R, steps between resets of the moments; 0 for none.
        total_steps: T, over which s falls to `eta_min`; None leaves s at 1.
        eta_min: Where s ends, in [0, 1].
        eps: Added to both denominators, 0 or more.
        weight_decay: Decoupled weight decay, 0 or more.
        clip: Whether AdaClip is on.
        norm: Whether AdaGN is on; without it, clipping, resets and `total_steps`, this is AdamW.
        reset: "clean", or "official" for the official code's counts.

    Raises:
        InvalidInput: On an option out of its range; from `step`, on a sparse gradient; from `load_state_dict`, on the
            state of another kind of optimizer.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = StableSPAM([weight], lr=0.1)
        >>> weight.grad = torch.tensor([3e6, -4e6])
        >>> optimizer.step()
        >>> weight.data, optimizer.state[weight]["peak"].item()
        (tensor([-0.1000,  0.1000]), 4000.0)
    """

    moments = ("exp_avg", "exp_avg_sq", *NUMBERS)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        gammas: tuple[float, float, float] = (0.7, 0.9, 0.999),
        reset_every: int = 1000,
        total_steps: int | None = None,
        eta_min: float = 0.5,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        clip: bool = True,
        norm: bool = True,
        reset: str = "clean",
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        schedule = {"reset_every": reset_every, "total_steps": total_steps, "eta_min": eta_min, "reset": reset}
        super().__init__(params, adam | schedule | {"gammas": gammas, "clip": clip, "norm": norm})

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if len(group["gammas"]) != 3 or not all(0 <= gamma < 1 for gamma in group["gammas"]):
            raise InvalidInput(f"gammas must be three numbers of at least 0 and below 1; got {group['gammas']!r}")
        _check_count("reset_every", group["reset_every"], 0)
        if group["total_steps"] is not None:
            _check_count("total_steps", group["total_steps"], 1)
        if not 0 <= group["eta_min"] <= 1:
            raise InvalidInput(f"eta_min must be between 0 and 1; got {group['eta_min']!r}")
        if group["reset"] not in ("clean", "official"):
            raise InvalidInput(f"reset must be 'clean' or 'official'; got {group['reset']!r}")

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        real = parameter.real.dtype if parameter.is_complex() else parameter.dtype
        number = torch.zeros((), dtype=torch.promote_types(real, torch.float32), device=parameter.device)
        moments = {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in self.moments[:2]}
        return moments | {name: number.clone() for name in NUMBERS}

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], steps: Tensor, *moments: list[Tensor]
    ) -> None:
        exp_avg, exp_avg_sq, peak, norm, norm_sq = moments
        if group["clip"]:
            found = numbers(partial(_peak, group), params, steps, torch.stack(peak), largest_entries(grads))
            write(peak, found[0])
            grads = _clipped(grads, *found[1:])
        afresh, decay, share, weight, eps, size = numbers(partial(_adam, group), params, steps)
        if group["norm"]:
            vectors = torch.stack(norm), torch.stack(norm_sq), norms(grads)
            found = numbers(partial(_norm, group), params, steps, *vectors)
            write(norm, found[0])
            write(norm_sq, found[1])
            share = found[2]
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        if group["reset_every"]:
            clear(exp_avg, afresh)
            clear(exp_avg_sq, afresh)
        torch._foreach_mul_(exp_avg, decay)
        torch._foreach_mul_(exp_avg_sq, group["betas"][1])
        # (1 - b1) G is what the mean needs; its square, scaled back, serves the mean square
        shares = torch._foreach_mul(grads, share)
        torch._foreach_add_(exp_avg, shares)
        add_squares(exp_avg_sq, shares, weight)
        denominators = torch._foreach_sqrt(exp_avg_sq)
        torch._foreach_add_(denominators, eps)
        add_quotients(params, exp_avg, denominators, size)

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, bit for bit.

        Raises:
            InvalidInput: If it is the state of another kind of optimizer.
        """
        if not all("gammas" in group for group in state_dict["param_groups"]):
            raise InvalidInput(
                "this state dict is no StableSPAM's: its groups lack gammas; start with fresh moments instead"
            )
        super().load_state_dict(state_dict)
        restore_types(self, state_dict, NUMBERS)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(f"{name} must be a whole number of at least {least}; got {value!r}")


def _counts(group: dict[str, Any], t: Any) -> tuple[Any, Any, Any]:
    """Return 1 where moments start afresh and 0 elsewhere, Adam's count k, and that of AdaClip and AdaGN."""
    every = group["reset_every"]
    if not every:
        return 0 * t, t, t
    since = t % every + (t >= every)
    if group["reset"] == "clean":
        return (t % every == 0) + 0 * t, since, t
    return ((t - 1) % every == 0) + 0 * t, since, t + (t > every) * (1 - every * ((t - 1) // every))


def _scale(group: dict[str, Any], t: Any) -> Any:
    """Return s."""
    total, least = group["total_steps"], group["eta_min"]
    if total is None:
        return 1.0
    share = t / (total + 1)
    share = share + (share > 1) * (1 - share)  # stays at 1
    cosine = torch.cos(math.pi * share) if isinstance(share, Tensor) else math.cos(math.pi * share)
    return least + (1 - least) * (1 + cosine) / 2


def _peak(group: dict[str, Any], t: Any, peak: Any, largest: Any) -> tuple[Any, Any, Any]:
    """Return M, M' and M' / max|G|."""
    c3, count = group["gammas"][2], _counts(group, t)[2]
    peak = c3 * peak + (1 - c3) * largest
    limit = peak / (1 - c3**count)
    return peak, limit, limit / (largest + (largest == 0))


def _clipped(grads: list[Tensor], limits: Numbers, ratios: Numbers) -> list[Tensor]:
    """Return gradients whose entries above their limit are multiplied by the ratio."""
    return [_limited(g, limits[i], ratios[i]) for i, g in enumerate(grads)]


def _limited(gradient: Tensor, limit: float | Tensor, ratio: float | Tensor) -> Tensor:
    if isinstance(limit, Tensor) or isinstance(ratio, Tensor):
        return torch.where(gradient.abs() > limit, gradient * ratio, gradient)
    if ratio >= 1:
        return gradient
    # a tenth of the time of where on a CPU
    return torch.sub(gradient, F.hardshrink(gradient, limit), alpha=1 - ratio)


def _norm(group: dict[str, Any], t: Any, norm: Any, norm_sq: Any, length: Any) -> tuple[Any, Any, Any]:
    """Return n, q and what of G is to enter the mean."""
    count, scale, c2 = _counts(group, t)[2], _scale(group, t), group["gammas"][1]
    a = group["gammas"][0] * scale
    norm = a * norm + (1 - a) * length
    norm_sq = c2 * norm_sq + (1 - c2) * length * length
    root = (norm_sq / (1 - c2**count)) ** 0.5 + group["eps"]
    target = norm / (1 - a**count) / (root + (root == 0))
    return norm, norm_sq, (1 - group["betas"][0] * scale) * target / (length + (length == 0))


def _adam(group: dict[str, Any], t: Any) -> tuple[Any, ...]:
    """Return where moments start afresh, the mean's decay, its share of G, the square's weight, eps and the size."""
    afresh, count, _ = _counts(group, t)
    beta1, beta2 = group["betas"][0] * _scale(group, t), group["betas"][1]
    lr = float(group["lr"]) if isinstance(t, float) else group["lr"]
    root = (1 - beta2**count) ** 0.5
    size = -lr * root / (1 - beta1**count)
    return afresh, beta1, 1 - beta1, (1 - beta2) / (1 - beta1) ** 2, group["eps"] * root, size
