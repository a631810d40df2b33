"""Products of one batch's curvature matrix with blocks of vectors, from one linearisation that serves them all.

Two ways, of which the first that works and agrees with the second is used:

1. Forward over reverse (Pearlmutter 1994), recorded once on a tape: no graph, no derivative formula at play time.
2. A retained graph of the gradient, differentiated once per block of vectors (`is_grads_batched`). It covers operations
   that have no forward derivative, or whose recording depends on more than the vector.

Batch norm in eval mode is written out as the affine map that it is; attention runs unfused. Rows: (r, P).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from assay.probes._tape import Tape

__all__ = ["Product", "linearised", "tape_agrees"]

Product = Callable[[Tensor], Tensor]
_Loss = Callable[[Tensor, Tensor], Tensor]
_Scores = Callable[[dict[str, Tensor]], Tensor]
# No forward derivative, a write into a constant, an output that the tape does not know.
_NO_TAPE = (RuntimeError, NotImplementedError, KeyError)
_AT_ONCE = 2**20  # elements of the largest tensor of a block of vectors: more would leave the cache
_BLOCK = 32  # where fewer than these fit, arithmetic outweighs calls, and vectors go one by one


def linearised(
    matrix: str, scores: _Scores, loss: _Loss, parameters: dict[str, Tensor], y: Tensor, *, by_tape: bool
) -> tuple[float, Product]:
    """Return the batch's mean loss and the map of rows (r, P) to the matrix times each of them."""
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    with _differentiable():
        if by_tape:
            try:
                return _by_tape(matrix, scores, loss, leaves, y)
            except _NO_TAPE:
                pass
        return _by_graph(matrix, scores, loss, leaves, y)


def tape_agrees(matrix: str, scores: _Scores, loss: _Loss, parameters: dict[str, Tensor], y: Tensor) -> bool:
    """Return whether a tape can be made of this network, and gives the product that the graph gives."""
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    P = sum(p.numel() for p in leaves.values())
    probe = torch.randn(1, P, generator=torch.Generator().manual_seed(0)).to(next(iter(leaves.values())))
    with _differentiable():
        try:
            played = _by_tape(matrix, scores, loss, leaves, y)[1](probe)
        except _NO_TAPE:
            return False
        expected = _by_graph(matrix, scores, loss, leaves, y)[1](probe)
        return bool((played - expected).abs().max() <= 1e-4 * expected.abs().max())


def _by_tape(matrix: str, scores: _Scores, loss: _Loss, leaves: dict[str, Tensor], y: Tensor) -> tuple[float, Product]:
    ends = list(leaves.values())
    generator = torch.Generator().manual_seed(1)
    tangents = [torch.randn(p.shape, generator=generator).to(p) for p in ends]
    tape = Tape(tangents)
    with tape, fwAD.dual_level():
        duals = [fwAD.make_dual(p, t) for p, t in zip(ends, tangents, strict=True)]
        f = scores(dict(zip(leaves, duals, strict=True)))
        value = loss(f, y)
        if matrix == "hessian":
            gradient = torch.autograd.grad(value, duals, allow_unused=True)
            found = [None if g is None else fwAD.unpack_dual(g).tangent for g in gradient]
        else:
            plain, pushed = fwAD.unpack_dual(f)
            with torch.no_grad():
                weight = _weighted(matrix, plain.detach(), pushed.detach(), loss, y)
            found = list(torch.autograd.grad(plain, duals, weight, allow_unused=True))
        outputs = [torch.zeros_like(t) if g is None else g for t, g in zip(tangents, found, strict=True)]
    played = tape.close(outputs)
    block = _AT_ONCE // tape.largest

    @torch.no_grad()
    def product(rows: Tensor) -> Tensor:
        if len(rows) < 4 or block < _BLOCK:
            return torch.cat([_flat(played(*(t[0] for t in _split(row, ends))), ends, 1) for row in rows.split(1)])
        together = torch.vmap(played)
        return torch.cat([_flat(together(*_split(part, ends)), ends, len(part)) for part in rows.split(block)])

    return value.item(), product


def _by_graph(matrix: str, scores: _Scores, loss: _Loss, leaves: dict[str, Tensor], y: Tensor) -> tuple[float, Product]:
    ends = list(leaves.values())
    f = scores(leaves)
    value = loss(f, y)
    if matrix == "hessian":
        gradient = _gradient(value, ends, None)
        return value.item(), lambda rows: _flat(_grad(gradient, ends, _split(rows, ends)), ends, len(rows))
    u = torch.zeros_like(f, requires_grad=True)  # J^T u is linear in u; its derivative transposed is J v
    pulled = _gradient(f, ends, u)

    def product(rows: Tensor) -> Tensor:
        pushed = _grad(pulled, [u], _split(rows, ends))[0]
        if pushed is None:
            return torch.zeros_like(rows)
        weight = torch.stack([_weighted(matrix, f.detach(), t, loss, y) for t in pushed])
        return _flat(_grad([f], ends, [weight]), ends, len(rows))

    return value.item(), product


def _gradient(output: Tensor, ends: list[Tensor], weight: Tensor | None) -> list[Tensor]:
    found = torch.autograd.grad(output, ends, weight, create_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(ends, found, strict=True)]


def _grad(outputs: list[Tensor], inputs: list[Tensor], weights: list[Tensor]) -> list[Tensor | None]:
    """Differentiate for a block of weights (r, ...) each; where an output depends on nothing, it adds nothing."""
    kept = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not kept:
        return [None] * len(inputs)
    outputs, weights = [o for o, _ in kept], [w for _, w in kept]
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    if len(weights[0]) == 1:
        found = torch.autograd.grad(outputs, inputs, [w[0] for w in weights], **options)
        return [None if g is None else g[None] for g in found]
    return list(torch.autograd.grad(outputs, inputs, weights, is_grads_batched=True, **options))


def _split(rows: Tensor, ends: list[Tensor]) -> list[Tensor]:
    parts = rows.split([p.numel() for p in ends], dim=1)
    return [part.reshape(-1, *p.shape) for part, p in zip(parts, ends, strict=True)]


def _flat(found: Sequence[Tensor | None], ends: list[Tensor], r: int) -> Tensor:
    parts = [p.new_zeros(r, p.numel()) if g is None else g.reshape(r, -1) for g, p in zip(found, ends, strict=True)]
    return torch.cat(parts, dim=1).detach()


def _weighted(matrix: str, f: Tensor, pushed: Tensor, loss: _Loss, y: Tensor) -> Tensor:
    """Return S_i J_i v / B (B, K) for pushed = J v (B, K)."""
    B = len(f)
    if matrix == "empirical-fisher":
        e = grad(loss)(f, y)  # of the mean: 1/B of the sample's own
        return B * e * (e * pushed).sum(-1, keepdim=True)
    if matrix == "fisher":
        p = F.softmax(f, dim=-1)
        return p * (pushed - (p * pushed).sum(-1, keepdim=True)) / B
    with torch.enable_grad():
        f = f.detach().requires_grad_()
        e = torch.autograd.grad(loss(f, y), f, create_graph=True)[0]
    return torch.autograd.grad(e, f, pushed)[0] if e.requires_grad else torch.zeros_like(f)


class _Affine(TorchFunctionMode):
    """Writes batch norm in eval mode out, since its backward pass has no forward derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace one function, pass on the others."""
        if func is torch.batch_norm and not args[5]:
            x, weight, bias, mean, variance, _, _, eps, *_ = args
            shape = (1, -1, *[1] * (x.ndim - 2))
            x = (x - mean.view(shape)) * (variance + eps).rsqrt().view(shape)
            x = x if weight is None else x * weight.view(shape)
            return x if bias is None else x + bias.view(shape)
        return func(*args, **(kwargs or {}))


@contextmanager
def _differentiable() -> Iterator[None]:
    """Have operations in a form that can be differentiated twice."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_Affine())
        yield
