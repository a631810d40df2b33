"""The training loop of the comparison of optimizers: one loop for all of them, its budget counted in gradients.

The budget is a number of samples that went through the network for a gradient. An optimizer that needs several passes
per step, or gradients of single samples, spends it faster; a forward pass alone counts a third of a gradient. The learning
rate follows the same shape for every optimizer: linear warm-up over the first twentieth of the budget, then a cosine down
to zero.
"""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.adaptive_batches import AdaptiveBatchSampler
from assay.data.batching import batches
from assay.data.dataset import Dataset, Split
from assay.lab import Record, Series
from assay.lab.resources import check_deadline
from assay.names import Spec, parse, resolve
from assay.optim.adaptive_batch import AdaptiveBatch
from assay.optim.curvature import empirical_fisher
from assay.optim.gradient_normalized_newton import GradientNormalizedNewton
from assay.optim.target_surrogates import TargetSurrogate
from assay.streams import Streams

__all__ = ["MuonWithAdamW", "train"]

WARM_UP = 0.05
EVALUATION_BATCH = 512
TESTED = 64


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices between first and last layer, AdamW for all else, as Muon's authors use it.

    Args:
        params: All parameters of a network and their names, in its order. The last two are the last layer's weight and
            bias; the first one and all with "embedding" in their name take what comes in.
        lr: Learning rate of both; Muon's updates are scaled to AdamW's size ("match_rms_adamw").
    """

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        everything = list(params)
        matrices = [p for name, p in everything[1:-2] if p.ndim == 2 and "embedding" not in name]
        inner = {id(p) for p in matrices}
        rest = [p for _, p in everything if id(p) not in inner]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=lr)]
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw"))
        super().__init__([{"params": part.param_groups[0]["params"]} for part in self.parts], {"lr": lr})

    # torch declares step by overloads that only an optimizer with a closure can meet
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step both, at the learning rate of this optimizer's groups."""
        for group, part in zip(self.param_groups, self.parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()


@dataclass
class _Progress:
    """What was spent and what was reached."""

    budget: float
    spent: float = 0.0
    seconds: float = 0.0
    finite: bool = True
    passes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.spent / self.budget

    def measure(self, loss: float, samples: int) -> None:
        self.losses.append(loss)
        self.passes.append(self.spent / samples)
        self.times.append(self.seconds)


def train(
    streams: Streams,
    *,
    data: str,
    model: str,
    optimizer: str,
    learning_rate: float,
    passes: float,
    batch_size: int,
    around: str | None = None,
    batch_test: str | None = None,
    surgery: str | None = None,
    evaluations: int = 20,
    validation_only: bool = False,
) -> Record:
    """Train once.

    Args:
        streams: Randomness of the split, the initial weights and the order of the mini-batches.
        data: A classification or text set of `assay.data`.
        model: A network of `assay.models`.
        optimizer: One of `assay.optim`, `torch.optim`, or "package.module:Class".
        learning_rate: Its largest learning rate.
        passes: Budget: gradients of so many training sets.
        batch_size: Samples per mini-batch.
        around: A transform of the optimizer's gradients, or an optimizer that wraps it.
        batch_test: Lets batches grow: a test of `assay.optim` on the gradients of the batch's first samples.
        surgery: What changes the model's layers before training, "package.module:function".
        evaluations: How often the validation loss is measured.
        validation_only: Leave the test split alone, as tuning must.

    Returns:
        Final losses and accuracies, and the validation loss over passes and over CPU seconds.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.entropy("init"))
        load = resolve("data", data)
        dataset: Dataset = load(generator=streams.torch("data"))
        network = resolve("models", model)(dataset.input_shape, dataset.outputs)
        if surgery is not None:
            resolve("nn", surgery)(network)
        torch.manual_seed(streams.entropy("noise"))
        stepper = _stepper(network, optimizer, learning_rate, around, streams.torch("noise"))
        count = len(dataset.train.inputs)
        sampler = AdaptiveBatchSampler(count, batch_size, generator=streams.torch("order"))
        adaptive = None
        if batch_test is not None:
            test = resolve("optim", batch_test)()
            adaptive = AdaptiveBatch(stepper, sampler, test, network, _loss, subsample=TESTED)
        progress = _Progress(passes * count)
        while progress.share < 1 and progress.finite:
            for indices in sampler:
                chosen = torch.tensor(indices)
                x, y = dataset.train.inputs[chosen], dataset.train.targets[chosen]
                _update(network, stepper, adaptive, x, y, progress, learning_rate)
                if progress.share >= len(progress.losses) / evaluations:
                    progress.measure(_evaluate(network, dataset.validation)[0], count)
                    check_deadline()
                if progress.share >= 1 or not progress.finite:
                    break
        return _record(network, dataset, progress, validation_only)


def _stepper(
    network: nn.Module, optimizer: str, learning_rate: float, around: str | None, noise: torch.Generator
) -> Any:
    spec = parse(optimizer)
    named = str(Spec(spec.name, spec.args, {**spec.kwargs, "lr": learning_rate}))
    parameters = network.named_parameters() if spec.name.endswith(MuonWithAdamW.__name__) else network.parameters()
    stepper = resolve("optim", named)(list(parameters))
    if around is None:
        return stepper
    make = resolve("optim", around)
    drawing = {"generator": noise} if "generator" in inspect.signature(make).parameters else {}
    made = make(stepper, **drawing)
    return made if isinstance(made, torch.optim.Optimizer) else stepper


def _rate(share: float) -> float:
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - WARM_UP) / (1 - WARM_UP))))


def _update(
    network: nn.Module,
    stepper: Any,
    adaptive: AdaptiveBatch | None,
    x: Tensor,
    y: Tensor,
    progress: _Progress,
    learning_rate: float,
) -> None:
    start = time.process_time()
    # The rate of the step's middle: the first step must move.
    rate = learning_rate * _rate(progress.share + len(x) / progress.budget / 2)
    for group in stepper.param_groups:
        group["lr"] = rate
    network.train()

    def closure() -> Tensor:
        stepper.zero_grad(set_to_none=True)
        loss = _loss(network(x), y)
        loss.backward()
        progress.spent += len(x)
        progress.finite = progress.finite and bool(torch.isfinite(loss))
        return loss

    if adaptive is not None:
        progress.finite = bool(torch.isfinite(adaptive.step(x, y)))
        progress.spent += len(x) + min(len(x), TESTED)
    elif isinstance(stepper, TargetSurrogate):
        before = _charged(stepper)
        # One example is one prediction: a character of a text, too.
        value = stepper.step(lambda: network(x).flatten(0, -2), lambda z: _loss(z, y.flatten()))
        progress.finite = bool(torch.isfinite(value))
        progress.spent += len(x) * (_charged(stepper) - before)
    elif isinstance(stepper, GradientNormalizedNewton):
        before = _gradients(stepper)
        stepper.curvature = empirical_fisher(lambda: _losses(network(x), y))
        value = stepper.step(lambda: _loss(network(x), y))
        progress.finite = bool(torch.isfinite(value))
        progress.spent += len(x) * (_gradients(stepper) - before)
    elif getattr(stepper, "needs_closure", False):
        stepper.step(closure)
    else:
        closure()
        stepper.step()
    progress.seconds += time.process_time() - start


def _charged(stepper: TargetSurrogate) -> float:
    """Return how many gradients per sample were spent so far: a line search's forward pass alone counts a third."""
    forwards, backwards = stepper.counts["forwards"], stepper.counts["backwards"]
    return backwards + (forwards - backwards) / 3


def _gradients(stepper: GradientNormalizedNewton) -> int:
    """Return how many gradients per sample were computed so far; empirical Fisher takes one."""
    return stepper.counts["evaluations"] + stepper.counts["curvatures"]


def _loss(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten())


def _losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of each sample."""
    losses = F.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(len(targets), -1).mean(1)


@torch.no_grad()
def _evaluate(network: nn.Module, split: Split) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    network.eval()
    losses, hits, count = 0.0, 0, 0
    for x, y in batches(split, EVALUATION_BATCH):
        scores = network(x)
        losses += float(_loss(scores, y)) * y.numel()
        hits += int((scores.argmax(-1) == y).sum())
        count += y.numel()
    return losses / count, hits / count


def _record(network: nn.Module, dataset: Dataset, progress: _Progress, validation_only: bool) -> Record:
    loss, accuracy = _evaluate(network, dataset.validation)
    metrics = {"validation_loss": loss, "validation_accuracy": accuracy, "validation_score": -loss}
    if not validation_only:
        metrics["test_loss"], metrics["test_accuracy"] = _evaluate(network, dataset.test)
    diverged = not progress.finite or not math.isfinite(loss)
    steps = tuple(progress.passes)
    return Record(
        metrics=metrics,
        series={
            "validation_loss": Series(steps, tuple(progress.losses), unit="pass"),
            "training_seconds": Series(steps, tuple(progress.times), unit="pass"),
        },
        resources={"training_seconds": progress.seconds, "samples": progress.spent},
        status="diverged" if diverged else "done",
    )
