"""Train one network through a long sequence of tasks and look at all classes after each.

One loop for all arms, so that they share split, initial weights and, where their tasks agree, samples and order. Every task
gets the same number of updates, with and without replay.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from assay.data.class_replay import FrequencyReplay, RandomReplay
from assay.data.dataset import Dataset, Split
from assay.data.task_stream import TaskStream, decreasing_frequencies, disjoint_tasks, recurring_tasks
from assay.lab.record import Record, Series
from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.probes.knowledge_accumulation import accumulation, class_recalls
from assay.streams import Streams

__all__ = ["accumulate"]

CLIP = 10.0


def accumulate(
    streams: Streams,
    *,
    data: str,
    model: str,
    order: str,
    num_tasks: int,
    classes_per_task: int,
    per_class: int,
    updates: int,
    batch_size: int,
    optimizer: str,
    lr: float,
    loss: str = "cross-entropy",
    exponent: float = 0.0,
    replay: str | None = None,
    validation_only: bool = False,
) -> Record:
    """Train through the tasks; metrics are those of `assay.probes.accumulation` and the accuracy of the rarest classes.

    Args:
        streams: "data" draws the split, "tasks" the classes of the tasks, "samples" theirs, "init" the weights, "order"
            the mini-batches, "replay" the memory.
        data: A loader of `assay.data` by name.
        model: A model of `assay.models` by name.
        order: "recurring", "blocked" (disjoint tasks, one after another, each as long as its share of the sequence) or
            "joint" (all classes in every task).
        num_tasks: T.
        classes_per_task: c.
        per_class: Samples of each class in a task; where all classes are in it, fewer, so that their number is the same.
        updates: Per task.
        batch_size: Samples per update.
        optimizer: Its name and options but for the rate.
        lr: Learning rate.
        loss: A loss by name.
        exponent: How unequal the frequencies of classes are.
        replay: None, "frequency" or "random".
        validation_only: Measure on the validation split instead of the test split.
    """
    dataset: Dataset = resolve("data", data)(generator=streams.torch("data"))
    assert dataset.num_classes is not None
    K = dataset.num_classes
    frequencies = decreasing_frequencies(K, exponent, generator=streams.torch("tasks"))
    tasks = _tasks(order, K, num_tasks, classes_per_task, frequencies, streams.torch("tasks"))
    shown = per_class * classes_per_task // tasks.shape[1]
    stream = TaskStream(dataset.train.targets, tasks, shown, seed=streams.entropy("samples"))
    network = resolve("models", model)(dataset.input_shape, K, generator=streams.torch("init"))
    step = _Step(network, resolve("losses", loss)(), resolve("optim", optimizer)(network.parameters(), lr=lr))
    memory = _memory(replay, streams.torch("replay"))
    held_out, shuffle = dataset.validation if validation_only else dataset.test, streams.torch("order")
    recalls, replays = [_recalls(network, held_out)], 0
    for task in stream:
        replayed = memory.choose(task.classes) if memory else []
        pool = torch.cat([task.indices, memory.samples(replayed)]) if memory else task.indices
        for batch in _batches(pool, updates, batch_size, shuffle):
            step(dataset.train.inputs[batch], dataset.train.targets[batch])
        if memory:
            memory.observe(task.indices, dataset.train.targets[task.indices], replayed)
        recalls.append(_recalls(network, held_out))
        replays += len(replayed)
        check_deadline()
    return _record(torch.stack(recalls), tasks, frequencies, replays, validation_only)


def _tasks(order: str, K: int, T: int, c: int, frequencies: Tensor, generator: torch.Generator) -> Tensor:
    """Return the classes (T, c) of each task, or (T, K) where every task shows all."""
    if order == "blocked":
        blocks = disjoint_tasks(K, c, generator=generator)
        return blocks[torch.arange(T) * len(blocks) // T]
    return recurring_tasks(K, T, K if order == "joint" else c, frequencies, generator=generator)


class _Step:
    """One update: loss, clipped gradient, step."""

    def __init__(self, network: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.criterion, self.optimizer = network, criterion, optimizer

    def __call__(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.criterion(self.network(x), y).backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        if not bool(norm.isfinite()):
            raise FloatingPointError(f"the gradient's norm is {float(norm)}")
        self.optimizer.step()


def _memory(replay: str | None, generator: torch.Generator) -> FrequencyReplay | RandomReplay | None:
    if replay is None:
        return None
    return {"frequency": FrequencyReplay, "random": RandomReplay}[replay](generator=generator)


def _batches(pool: Tensor, updates: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield so many mini-batches of the pool, shuffled anew whenever it is used up."""
    left = pool[:0]
    for _ in range(updates):
        if not len(left):
            left = pool[torch.randperm(len(pool), generator=generator)]
        yield left[:size]
        left = left[size:]


@torch.no_grad()
def _recalls(network: nn.Module, split: Split) -> Tensor:
    return class_recalls(network(split.inputs), split.targets)


def _record(recalls: Tensor, tasks: Tensor, frequencies: Tensor, replays: int, validation_only: bool) -> Record:
    found = accumulation(recalls, tasks)
    if validation_only:
        return Record(metrics={"validation_score": found.late})
    accuracy = recalls.mean(dim=1).tolist()
    rarest = frequencies.argsort(stable=True)[:3]
    metrics = found._asdict() | {
        "rare_accuracy": recalls[-20:, rarest].mean().item(),
        "at_50": sum(accuracy[46:56]) / 10 if len(accuracy) > 56 else accuracy[-1],
        "replayed_per_task": replays / len(tasks),
    }
    series = {"accuracy": Series(tuple(range(len(accuracy))), tuple(accuracy), unit="task")}
    return Record(metrics=metrics, series=series)
