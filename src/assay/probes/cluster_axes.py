"""Cluster alignment: has each hidden neuron turned to the axis of the class that it votes for?

Xu, Wang, Frei, Vardi, Hu (2024, arXiv:2310.02541), proof of the theorem: on XOR clusters neurons with a_j > 0 turn to
+-mu_1 and those with a_j < 0 to +-mu_0, which is when the network generalises. Neuron j votes for the class k_j whose
head weight is largest; it is aligned if |cos(w_j, mu_k)| is largest for k = k_j.

Shapes: weight (m, p) of m neurons, top (K, m) the head that reads them, axes (K, p), one direction per class, in the
space of the layer's inputs. Cost: 2 m p K flops; one batch is passed forward to find the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.view import View

__all__ = ["ClusterAlignment", "cluster_alignment"]


def cluster_alignment(weight: Tensor, top: Tensor, axes: Tensor) -> dict[str, float]:
    """Return how far neurons point along the axis of the class that they vote for.

    Args:
        weight: A row per neuron (m, p).
        top: Head weights (K, m), K at least 2; with scores (-f/2, f/2) they are the signs a_j.
        axes: One direction per class (K, p), of any length above 0.

    Returns:
        "aligned_share", the share of neurons with a larger |cosine| to their own axis than to any other, and
        "aligned_cosine", the mean |cosine| to their own axis. A neuron of length 0 has cosine 0 to all.

    Raises:
        InvalidInput: If the shapes do not fit, or an axis has length 0.

    Example:
        >>> top = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
        >>> cluster_alignment(torch.tensor([[0.0, -2.0], [3.0, 4.0]]), top, torch.eye(2))
        {'aligned_share': 0.5, 'aligned_cosine': 0.8}
    """
    (K, m), p = top.shape, weight.shape[1]
    if K < 2 or weight.shape != (m, p) or axes.shape != (K, p):
        raise InvalidInput(
            f"weight {tuple(weight.shape)}, top {tuple(top.shape)} and axes {tuple(axes.shape)} do not fit; expected "
            "(neurons, inputs), (classes, neurons) and (classes, inputs) with at least 2 classes"
        )
    lengths = axes.double().norm(dim=1)
    if not (lengths > 0).all():
        raise InvalidInput("an axis has length 0 or is not finite; give one direction per class")
    w = weight.detach().double()
    overlaps = (w @ axes.double().T / lengths).abs() / w.norm(dim=1, keepdim=True).clamp_min(1e-300)
    own = top.argmax(dim=0)[:, None]
    cosine = overlaps.gather(1, own)
    others = overlaps.scatter(1, own, -1.0).amax(dim=1, keepdim=True)
    share = torch.where(overlaps.isfinite().all(), (cosine > others).double().mean(), math.nan)
    return {"aligned_share": share.item(), "aligned_cosine": cosine.mean().item()}


class ClusterAlignment:
    """`cluster_alignment` of the layer beneath a network's head, such as the hidden layer of `TwoLayerReLU`.

    Args:
        axes: One direction per class (K, p), in the space of the layer's inputs; for XOR clusters their `centers`.
        layer: The hidden layer's name; the last `nn.Linear` with as many outputs as the head has inputs if not given.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> probe = ClusterAlignment(torch.eye(2))
        >>> sorted(probe.measure(View(model), [(torch.ones(1, 2), torch.tensor([0]))]))
        ['aligned_cosine', 'aligned_share']
    """

    def __init__(self, axes: Tensor, layer: str | None = None) -> None:
        self.axes, self.layer = axes.detach(), layer
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return "aligned_share" and "aligned_cosine", in [0, 1]; NaN if a weight is not finite or there is no head.

        Args:
            view: The network.
            batches: Pairs of inputs and targets; one batch is passed forward to find the head.

        Raises:
            InvalidInput: If there is no layer of the given name, or layer, head and axes do not fit.
        """
        self.skipped = {}
        view.observe(next(iter(batches))[0])
        head = view.head()
        if head is None:
            return self._undefined("the network has no linear head that reads the neurons")
        hidden = self._hidden(view.model, head)
        if hidden is None:
            return self._undefined("no nn.Linear gives the neurons that the head reads")
        if not (hidden.weight.isfinite().all() and head.weight.isfinite().all()):
            return self._undefined("a weight of the layer or of the head is NaN or infinite")
        return cluster_alignment(hidden.weight, head.weight, self.axes.to(hidden.weight.device))

    def _undefined(self, reason: str) -> dict[str, float]:
        self.skipped = dict.fromkeys(("aligned_share", "aligned_cosine"), reason)
        return dict.fromkeys(self.skipped, math.nan)

    def _hidden(self, model: nn.Module, head: nn.Linear) -> nn.Linear | None:
        found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        fitting = {name: m for name, m in found.items() if m.out_features == head.in_features}
        if self.layer is None:
            return list(fitting.values())[-1] if fitting else None
        if self.layer in fitting:
            return fitting[self.layer]
        raise InvalidInput(
            f"{type(model).__name__} has no nn.Linear that is a hidden layer {self.layer!r} with {head.in_features} "
            f"outputs, as its head reads; it has {', '.join(found) or 'none besides the head'}"
        )
