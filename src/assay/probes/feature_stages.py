"""The stages of feature learning, layer by layer: what signal reaches the hidden nodes, and how far they act alone.

Tian (2025, arXiv:2509.21519), stages (I) lazy, (II) independent, (III) interactive feature learning. Per layer, with F
the features that an `nn.Linear` reads, G = -dL/dF the signal that comes back and g_j its columns:

    signal_norm         sqrt(mean_i |G_i|^2)
    signal_alignment    mean_j cos(g_j, Yc Yc^T f_j)             1: each node climbs its own energy, stage II
    feature_energy      mean_j 2 E_j / (lambda |Pf_j|^2)          share of its greatest value, E_j = 1/2 |Yc^T f_j|^2
    feature_overlap     mean_{j != l} |C_jl| / mean_j |C_jj|      C = Fc^T Fc, as the official code logs it
    feature_redundancy  mean_j 1 - 1 / (b_jj (C_jj + eta))        B = (C + eta I)^-1; stage III's interaction

Symbols: n samples, K nodes, N_c samples of class c, Y one-hot, Yc = P Y, Fc = P F, P = I - 1 1^T / n, lambda the
greatest eigenvalue of Yc^T Yc. Chance level of the energy is (C - 1) / (n - 1) for C classes.

In stage III node j feels the others through B: b_jl has the sign opposite to f_j^T P' f_l, where P' takes away what all
further nodes explain (similar nodes repel); and sum_l b_jl (C_jl + eta [j = l]) = 1 makes the whole interaction of a
node, -sum_{l != j} b_jl C_jl = b_jj (C_jj + eta) - 1, never negative. In [0, 1) that is the redundancy: the share of
a node that ridge regression on all other nodes predicts.

Convention: L is the mean over samples by the caller's loss, G is n times its gradient; eta is relative to the mean of
C_jj; constant or unused nodes are left out of the means. Where each class has one sample every feature is a function of
the class, and where nodes outnumber samples redundancy is near 1: both say little, the first is skipped.

Cost: a forward and a backward pass down to the first such layer, 2 n K^2 flops per layer, K^3 / 3 at the end; memory
8 (K^2 + 2 C K) bytes per layer, whatever n. Gradients of parameters are not formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes._feature_sums import FeatureSums
from assay.probes._same_scores import why_not_own_scores
from assay.probes.class_statistics import check_labels
from assay.probes.view import View

__all__ = ["FeatureStages"]

QUANTITIES = ("signal_norm", "signal_alignment", "feature_energy", "feature_overlap", "feature_redundancy")


class FeatureStages:
    """Signal, alignment with the energy, energy, overlap and redundancy of the features of each layer.

    Args:
        layers: Names of the `nn.Linear`s whose inputs are the features; all that read hidden features if not given.
            Keys end in these names: in `Sequential(Linear, ReLU, Linear)` the hidden layer's features are ".../2".
        eta: Ridge weight of the redundancy, as a share of the mean squared norm of a centred feature.
        max_width: Layers with more features are skipped, since overlap and redundancy need all pairs.

    Attributes:
        nodes: Of the last measurement, per layer: "alignment", "energy" and "redundancy" of each node (K,), NaN where
            a node is constant.

    Raises:
        InvalidInput: If eta or max_width is not above 0.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> _ = torch.nn.init.eye_(model[0].weight), torch.nn.init.zeros_(model[0].bias)
        >>> data = [(torch.eye(2).repeat(3, 1), torch.tensor([0, 1]).repeat(3))]
        >>> values = FeatureStages().measure(View(model), data)
        >>> round(values["feature_energy/2"], 6)  # two nodes tell the classes apart, two are constant
        1.0
    """

    dear = True  # the Gram matrix of wide layers costs more than a training step on the same samples

    def __init__(self, layers: Sequence[str] | None = None, eta: float = 1e-3, max_width: int = 2048) -> None:
        if not (eta > 0 and max_width > 0):
            raise InvalidInput(f"eta and max_width must be above 0, not {eta} and {max_width}")
        self.layers, self.eta, self.max_width = layers, eta, max_width
        self.skipped: dict[str, str] = {}
        self.nodes: dict[str, dict[str, Tensor]] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the quantities as "<quantity>/<layer>".

        Args:
            view: The network; its `loss` must average over the batch.
            batches: Pairs of inputs and classes.

        Returns:
            NaN where a quantity is not defined; `skipped` says why. A network without hidden features gives
            "signal_alignment" alone, as NaN.

        Raises:
            InvalidInput: If a named layer is no `nn.Linear` of the model, or the targets are no classes.
        """
        self.skipped, self.nodes = {}, {}
        sums, refused = self._collect(view, batches)
        values: dict[str, float] = {}
        for name, layer in sums.items():
            found, self.nodes[name], reasons = layer.finish(self.eta)
            values |= {f"{key}/{name}": value for key, value in found.items()}
            self.skipped |= {f"{key}/{name}": reason for key, reason in reasons.items()}
        for name, reason in refused.items():
            keys = [f"{key}/{name}" for key in QUANTITIES] if name else ["signal_alignment"]
            values |= dict.fromkeys(keys, math.nan)
            self.skipped |= dict.fromkeys(keys, reason)
        return values

    def _collect(
        self, view: View, batches: Iterable[tuple[Any, Tensor]]
    ) -> tuple[dict[str, FeatureSums], dict[str, str]]:
        """Return the sums of each layer, and why a layer (or with the name "" the network) has none."""
        linears = _linears(view.model, self.layers)
        # Frozen ones too: features must be differentiable wherever they come from.
        parameters = {
            name: p.detach().requires_grad_() for name, p in view.model.named_parameters() if p.is_floating_point()
        }
        sums: dict[str, FeatureSums] = {}
        refused: dict[str, str] = {}
        for x, y in batches:
            if not sums and (reason := why_not_own_scores(view, x)):
                return {}, {"": reason}
            with torch.inference_mode(False), torch.enable_grad(), _reads(linears) as reads:
                scores = view.functional(parameters, x)
            check_labels(scores, y, scores.shape[1])
            usable = self._usable(reads, x, len(scores), refused)
            for name, features, signal in _signals(view, scores, y, usable, refused):
                sums.setdefault(name, FeatureSums(scores.shape[1], features)).add(features, signal, y)
        if not sums and not refused:
            refused[""] = "the network has no nn.Linear that reads hidden features"
        return {name: found for name, found in sums.items() if name not in refused}, refused

    def _usable(
        self, reads: dict[str, list[Tensor]], x: Any, samples: int, refused: dict[str, str]
    ) -> dict[str, Tensor]:
        usable = {}
        for name, inputs in reads.items():
            if self.layers is None and _is_view(inputs[0], x):
                continue  # the data, not features
            if len(inputs) > 1:
                refused[name] = f"the layer ran {len(inputs)} times in one forward pass"
            elif inputs[0].ndim != 2 or len(inputs[0]) != samples:
                refused[name] = f"the layer read {tuple(inputs[0].shape)} for {samples} samples, not one vector each"
            elif inputs[0].shape[1] > self.max_width:
                refused[name] = f"{inputs[0].shape[1]} features are more than max_width={self.max_width}"
            else:
                usable[name] = inputs[0]
        if self.layers is not None:
            refused |= {name: "the layer did not run" for name in self.layers if name not in reads}
        return usable


def _linears(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Linear]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if names is None:
        return found
    if missing := [name for name in names if name not in found]:
        raise InvalidInput(f"the network has no nn.Linear {missing[0]!r}; it has {list(found)}")
    return {name: found[name] for name in names}


@contextmanager
def _reads(linears: dict[str, nn.Linear]) -> Iterator[dict[str, list[Tensor]]]:
    """Yield what each layer reads in the forward pass inside, as tensors that the loss can be differentiated by."""
    reads: dict[str, list[Tensor]] = {}

    def catch(name: str) -> Callable[..., Any]:
        def hook(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            read = args[0] if args else kwargs["input"]
            if not read.requires_grad:  # data, or features made under no_grad
                read = read.detach().requires_grad_()
            reads.setdefault(name, []).append(read)
            return ((read, *args[1:]), kwargs) if args else (args, kwargs | {"input": read})

        return hook

    with ExitStack() as hooks:
        for name, module in linears.items():
            hooks.enter_context(module.register_forward_pre_hook(catch(name), with_kwargs=True))
        yield reads


def _signals(
    view: View, scores: Tensor, y: Tensor, features: dict[str, Tensor], refused: dict[str, str]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, features F and signal G of each layer that the loss reaches."""
    if not features:
        return
    with torch.inference_mode(False), torch.enable_grad():
        gradients = torch.autograd.grad(view.loss(scores, y), list(features.values()), allow_unused=True)
    for (name, F), gradient in zip(features.items(), gradients, strict=True):
        if gradient is None:
            refused[name] = "the loss does not depend on the layer"
        elif not (F.isfinite().all() and gradient.isfinite().all()):
            refused[name] = "features or their gradients are not finite"
        else:
            yield name, F.detach(), gradient * -len(y)


def _is_view(tensor: Tensor, x: Any) -> bool:
    return isinstance(x, Tensor) and tensor.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
