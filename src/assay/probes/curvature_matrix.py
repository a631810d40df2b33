"""The Hessian, Gauss-Newton or Fisher matrix of the mean loss over a data set, as a linear map of blocks of vectors.

Sagun, Evci, Guney, Dauphin, Bottou (2017, arXiv:1706.04454), section 2; scores f_i = f(w, x_i) in R^K, J_i = df_i/dw:

    hessian            H = 1/N sum_i d2 l(f_i, y_i) / dw2 = G + R, where R sums (dl/df_k) d2 f_k / dw2
    ggn                G = 1/N sum_i J_i^T S_i J_i,  S_i = d2 l / df2            (Gauss-Newton)
    fisher             the same with S_i = diag(p_i) - p_i p_i^T, p_i = softmax(f_i): the Fisher matrix of the network's
                       own class distribution; equal to the Gauss-Newton matrix under plain cross-entropy
    empirical-fisher   1/N sum_i g_i g_i^T with g_i = J_i^T dl/df_i: the uncentred second moment of sample gradients

Symbols: P trainable parameters, N samples in batches of n_b, r vectors. Vectors are flat, in the order of
`names`; a tied weight comes once, frozen ones not at all. Each batch counts n_b / N.

Conventions: the matrix belongs to the parameters and buffers at construction (copies are kept). Batch norm and dropout
are in eval mode: the matrix is a property of the network, not of a batch. Attention runs in its unfused form, since
fused kernels have no second derivative. Kinks (ReLU, max-pooling) count with the curvature of the piece they are on.

Cost: one linearisation of the loss, kept for all batches (their activations stay in memory; `retain=False` makes it
anew for every product), then about two gradients per vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from assay.errors import InvalidInput
from assay.probes._batches import Batches
from assay.probes._linearised import Product, linearised, tape_agrees
from assay.probes._pieces import joinable, pieces
from assay.probes._trace import untouched
from assay.probes.view import View

__all__ = ["CurvatureMatrix"]

Matrix = Literal["hessian", "ggn", "fisher", "empirical-fisher"]


class CurvatureMatrix:
    """A symmetric (P, P) matrix that is never formed; `matrix @ vectors` takes (P,) or (P, r).

    Args:
        model: The network, or a `View` of it.
        loss: Maps scores (B, K) and targets to the batch's mean loss; the view's, or cross-entropy, if None.
        batches: What the loss is averaged over, in any form that `assay.Watch` takes.
        matrix: "hessian", "ggn", "fisher" or "empirical-fisher", see the head of this module.
        parameters: Names of trainable parameters or of modules ("0.weight", "encoder"); None takes all.
        dtype: Precision of the products; the parameters' own if None.
        batch_size: Samples per batch, where `batches` is a pair of tensors.
        retain: False linearises anew for every product, with the memory of one batch.

    Attributes:
        shape: (P, P).
        samples: N.
        loss: Mean loss over the samples, not finite where the network is broken.
        slices: Where each parameter lies in a flat vector, by name.

    Raises:
        InvalidInput: If there are no data, no trainable parameters, or a name is none of them.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> squared = lambda scores, y: ((scores - y) ** 2).mean() / 2
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> CurvatureMatrix(model, squared, (x, torch.zeros(2, 1))) @ torch.eye(2)  # X^T X / N
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]])
    """

    def __init__(
        self,
        model: nn.Module | View,
        loss: Callable[[Tensor, Tensor], Tensor] | None,
        batches: Any,
        *,
        matrix: Matrix = "hessian",
        parameters: str | Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 1024,
        retain: bool = True,
    ) -> None:
        if matrix not in get_args(Matrix):
            raise InvalidInput(f"matrix must be one of {', '.join(get_args(Matrix))}, not {matrix!r}")
        self.view = model if isinstance(model, View) else View(model, loss=loss)
        self.matrix, self._cast_to, self._retain = matrix, dtype, retain
        self._loss = loss or self.view.loss
        self._batches = batches if isinstance(batches, Batches) else Batches(batches, batch_size, self.view)
        chosen = _chosen(self.view, parameters)
        everything = dict(self.view.model.named_parameters()) | dict(self.view.model.named_buffers())
        self._tensors = {name: _copied(t, dtype) for name, t in everything.items()}
        self._parameters = {name: self._tensors.pop(name) for name in chosen}
        self.slices, offset = {}, 0
        for name, p in self._parameters.items():
            self.slices[name] = slice(offset, offset + p.numel())
            offset += p.numel()
        self.shape = (offset, offset)
        self._by_tape: bool | None = None
        self._products: list[tuple[int, Product]] = []
        self.samples, self.loss = 0, 0.0
        for size, value, product in self._linearisations():
            self.samples, self.loss = self.samples + size, self.loss + size * value
            if retain:
                self._products.append((size, product))
        self.loss /= max(self.samples, 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the order of a flat vector."""
        return tuple(self.slices)

    @property
    def device(self) -> torch.device:
        """Where vectors must be."""
        return next(iter(self._parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of vectors."""
        return next(iter(self._parameters.values())).dtype

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return tensors by parameter name, for example gradients, as one vector (P,)."""
        return torch.cat([tensors[name].reshape(-1).to(self.dtype) for name in self.slices])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector (P,) as tensors with the shapes of the parameters, by name."""
        return {name: vector[where].view_as(self._parameters[name]) for name, where in self.slices.items()}

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return the matrix times one vector (P,) or a block of them (P, r).

        Raises:
            InvalidInput: If the length is not P.
        """
        if vectors.ndim not in (1, 2) or len(vectors) != self.shape[0]:
            raise InvalidInput(f"vectors have shape {tuple(vectors.shape)}; expected ({self.shape[0]},) or (.., r)")
        rows = vectors.reshape(self.shape[0], -1).mT
        return self.times_rows(rows.to(self.device, self.dtype)).mT.reshape(vectors.shape)

    def times_rows(self, rows: Tensor) -> Tensor:
        """Return the matrix times each row of (r, P), as rows: no transposition, so faster than `@`."""
        found = self._products or ((size, product) for size, _, product in self._linearisations())
        total: Tensor | None = None
        for size, product in found:
            part = product(rows)
            if size < self.samples:
                part.mul_(size / self.samples)
            total = part if total is None else total.add_(part)
        assert total is not None  # data are never empty
        return total

    def dense(self, block: int = 64) -> Tensor:
        """Return the matrix (P, P), symmetrised; meant for networks of at most a few thousand parameters."""
        P = self.shape[0]
        identity = torch.eye(P, dtype=self.dtype, device=self.device)
        dense = torch.cat([self.times_rows(rows) for rows in identity.split(block)])
        return (dense + dense.T) / 2

    def _linearisations(self) -> Iterator[tuple[int, float, Product]]:
        """Yield size, mean loss and product by piece, with the network in eval mode and untouched afterwards."""
        for group in joinable(self._batches):
            batches = [tree_map_only(Tensor, partial(_cast, dtype=self._cast_to), batch) for batch in group]
            with untouched(*self.view.modules), torch.inference_mode(False), torch.enable_grad():
                for module in self.view.modules:
                    module.eval()
                done = [(len(y), *self._linearised(x, y)) for x, y in pieces(self._mean_loss, batches)]
            yield from done

    def _linearised(self, x: Any, y: Tensor) -> tuple[float, Product]:
        what = (self.matrix, partial(self._scores, x), self._loss, self._parameters, y)
        if self._by_tape is None:  # the first piece decides for all
            self._by_tape = tape_agrees(*what)
        return linearised(*what, by_tape=self._by_tape)

    def _scores(self, x: Any, parameters: dict[str, Tensor]) -> Tensor:
        return self.view.functional(self._tensors | parameters, x)

    def _mean_loss(self, x: Any, y: Tensor) -> Tensor:
        return self._loss(self._scores(x, self._parameters), y)


def _chosen(view: View, wanted: str | Sequence[str] | None) -> list[str]:
    trainable = list(view.parameters())
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted is not None:
        for name in wanted:
            if not any(p == name or p.startswith(name + ".") for p in trainable):
                raise InvalidInput(f"{name!r} is no trainable parameter or module; there are {', '.join(trainable)}")
        trainable = [p for p in trainable if any(p == name or p.startswith(name + ".") for name in wanted)]
    if not trainable:
        raise InvalidInput("the model has no trainable parameters; set requires_grad on some")
    return trainable


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _copied(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return _cast(tensor.detach().clone(), dtype)
