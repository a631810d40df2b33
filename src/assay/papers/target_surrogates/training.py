"""Lowering a training loss with a fixed number of gradients by the model's outputs: one loop for all optimizers.

A query is one gradient of the loss by the outputs of one batch. SGD and its relatives take one parameter step per query;
target surrogates take several. Batches, initial weights and data are the same for one seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.batching import batches
from assay.data.dataset import Split
from assay.errors import InvalidInput
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.models.mlp import MLP
from assay.names import resolve
from assay.optim.armijo import ArmijoDescent
from assay.optim.target_surrogates import TargetSurrogate
from assay.streams import Streams

__all__ = ["factorisation", "minimise"]

METHODS = ("sgd", "sgd-sqrt", "sgd-armijo", "adamw", "adagrad", "surrogate")
Loss = Callable[[Tensor, Tensor], Tensor]


def factorisation(samples: int, generator: torch.Generator) -> tuple[Split, nn.Module]:
    """Return inputs x (N, 6), targets (N, 10) of a badly conditioned linear map, and the linear network 6 - 10 - 10."""
    x = torch.randn(samples, 6, generator=generator)
    A = torch.linspace(1, 1e-10, 10)[:, None] * torch.rand(10, 6, generator=generator)
    model = nn.Sequential(*(nn.utils.skip_init(nn.Linear, n, 10, bias=False) for n in (6, 10)))
    for parameter in model.parameters():
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    return Split(x, x @ A.T), model


def _half_squared(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().sum(1).mean() / 2


def minimise(
    streams: Streams,
    data: str,
    model: str,
    method: str,
    queries: int,
    batch_size: int | None,
    lr: float,
    goal: float,
    inner_steps: int = 1,
    validation_only: bool = False,
) -> Record:
    """Train with a budget of queries and return the loss on the whole training set.

    Args:
        streams: "data" draws split or problem, "init" the weights, "order" the mini-batches.
        data: A loader of `assay.data` by name, or "factorisation" for the paper's synthetic problem with 1000 samples.
        model: "linear", "mlp" (one hidden layer of 64), or "factorisation".
        method: "sgd", "sgd-sqrt" (its rate falls as 1 / sqrt(t)), "sgd-armijo" (on the loss itself), "adamw", "adagrad" or
            "surrogate" (inner steps by Armijo's rule).
        queries: Gradients of the loss by the outputs.
        batch_size: Samples per query; None is all.
        lr: Learning rate, largest step of Armijo's rule, or eta, the surrogate's step of the outputs.
        goal: Training loss whose first evaluation, of some twenty at equal distances, gives "queries_to_goal"; all queries
            if it is not reached, a lower bound.
        inner_steps: Parameter steps per query of the surrogate.
        validation_only: Leave the test split alone; the score is minus the training loss, as the claim is about it.
    """
    train, test, net, criterion = _problem(streams, data, model)
    optimizer = _optimizer(method, net, lr, inner_steps)
    passes, every = {"forwards": 0, "backwards": 0}, 1 if batch_size is None else max(1, queries // 20)
    history = {0: _loss(net, train, criterion)}
    for step, (x, y) in enumerate(itertools.islice(_endless(train, batch_size, streams.torch("order")), queries)):
        if method == "sgd-sqrt":
            optimizer.param_groups[0]["lr"] = lr / math.sqrt(step + 1)
        _step(optimizer, net, x, y, criterion, passes)
        check_deadline()
        if (step + 1) % every == 0 or step + 1 == queries:
            history[step + 1] = _loss(net, train, criterion)
    if not math.isfinite(history[queries]):
        raise FloatingPointError("the training loss is not finite")
    if validation_only:
        return Record(metrics={"validation_score": -history[queries]})
    metrics = _metrics(history[queries], passes, net, test)
    metrics["queries_to_goal"] = float(next((query for query, loss in history.items() if loss <= goal), queries))
    if batch_size is None:
        metrics["largest_increase"] = max(after - before for before, after in itertools.pairwise(history.values()))
    return Record(metrics=metrics, series={"train_loss": Series(tuple(history), tuple(history.values()), unit="query")})


def _metrics(loss: float, passes: dict[str, int], net: nn.Module, test: Split | None) -> dict[str, float]:
    metrics = {"train_loss": loss, "log10_train_loss": math.log10(max(loss, 1e-30)), **passes}
    if test is not None:
        with torch.no_grad():
            metrics["test_accuracy"] = (net(test.inputs).argmax(1) == test.targets).double().mean().item()
    return metrics


def _problem(streams: Streams, data: str, model: str) -> tuple[Split, Split | None, nn.Module, Loss]:
    """Return training and test split, the initial model and the loss, a mean over samples."""
    if data == "factorisation":
        split, network = factorisation(1000, streams.torch("data"))
        return split, None, network, _half_squared
    if model not in ("linear", "mlp"):
        raise InvalidInput(f"model must be 'linear' or 'mlp' on data {data!r}; got {model!r}")
    dataset = resolve("data", data)(generator=streams.torch("data"))
    depth = 1 if model == "mlp" else 0
    net = MLP(dataset.input_shape, dataset.outputs, 64, depth, generator=streams.torch("init"))
    return dataset.train, dataset.test, net, F.cross_entropy


def _optimizer(method: str, net: nn.Module, lr: float, inner_steps: int) -> torch.optim.Optimizer:
    if method == "surrogate":
        return TargetSurrogate(ArmijoDescent(net.parameters()), eta=lr, inner_steps=inner_steps)
    if method == "sgd-armijo":
        return ArmijoDescent(net.parameters(), lr=lr)
    if method == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    if method == "adagrad":
        return torch.optim.Adagrad(net.parameters(), lr=lr)
    if method in ("sgd", "sgd-sqrt"):
        return torch.optim.SGD(net.parameters(), lr=lr)
    raise InvalidInput(f"method must be one of {', '.join(METHODS)}; got {method!r}")


def _endless(split: Split, batch_size: int | None, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from batches(split, batch_size, order)


def _step(
    optimizer: torch.optim.Optimizer,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    criterion: Loss,
    passes: dict[str, int],
) -> None:
    """Take one step with one query, and count the model's passes."""
    if isinstance(optimizer, TargetSurrogate):
        optimizer.step(lambda: net(x), lambda z: criterion(z, y))
        passes |= {name: optimizer.counts[name] for name in passes}
        return

    def value() -> Tensor:
        passes["forwards"] += 1
        return criterion(net(x), y)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value()
        loss.backward()
        passes["backwards"] += 1
        return loss.detach()

    if isinstance(optimizer, ArmijoDescent):
        optimizer.step(closure, lambda: value().detach())
        return
    optimizer.step(closure)  # type: ignore[arg-type]


@torch.no_grad()
def _loss(net: nn.Module, split: Split, criterion: Loss) -> float:
    return float(criterion(net(split.inputs), split.targets))
