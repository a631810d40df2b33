"""Training with AdaGrad under one scheme of batch sizes, its budget counted in samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.data.adaptive_batches import AdaptiveBatchSampler
from assay.data.dataset import Dataset, Split
from assay.lab import Record, Series
from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.optim.adaptive_batch import AdaptiveBatch
from assay.streams import Streams

__all__ = ["train"]

NEVER = 0.0


def train(
    streams: Streams,
    *,
    data: str,
    model: str,
    scheme: str,
    optimizer: str,
    lr: float,
    passes: int,
    batch_size: int,
    max_batch_size: int,
    subsample: int,
    validation_only: bool = False,
) -> Record:
    """Train once.

    Args:
        streams: Randomness of the split, the initial weights and the order.
        data: A classification set of `assay.data`.
        model: A network of `assay.models`.
        scheme: "constant", "ramp" (grows linearly in samples from the first size to the largest), or a test of
            `assay.optim` such as "norm-test(eta=1.0)".
        optimizer: Of `assay.optim` or `torch.optim`.
        lr: Its learning rate.
        passes: Budget: passes over the training set.
        batch_size: First size.
        max_batch_size: Largest size.
        subsample: Most samples that a test looks at.
        validation_only: Leave the test split alone, as tuning must.

    Returns:
        Accuracies, the training loss, the number of steps, mean and largest batch, samples that were tested over
        samples that were seen, and the batch size over samples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.entropy("init"))
        dataset: Dataset = resolve("data", data)(generator=streams.torch("data"))
        network = resolve("models", model)(dataset.input_shape, dataset.outputs)
        stepper = resolve("optim", optimizer)(network.parameters())
        for group in stepper.param_groups:
            group["lr"] = lr
        count = len(dataset.train.inputs)
        sampler = AdaptiveBatchSampler(count, batch_size, max_batch_size, streams.torch("order"))
        test = _Counted(_never if scheme in ("constant", "ramp") else resolve("optim", scheme)())
        # A test that never fires needs no gradients to say so.
        interval = 1 if test.test is not _never else 2**62
        loss = nn.functional.cross_entropy
        adaptive = AdaptiveBatch(stepper, sampler, test, network, loss, interval, subsample)
        seen, sizes = 0, []
        for _ in range(passes):
            for indices in sampler:
                chosen = torch.tensor(indices)
                if scheme == "ramp":
                    share = seen / (passes * count)
                    sampler.grow_to(batch_size + share * (max_batch_size - batch_size))
                adaptive.step(dataset.train.inputs[chosen], dataset.train.targets[chosen])
                seen += len(indices)
                sizes.append((float(seen), float(len(indices))))
            check_deadline()
        return _record(network, dataset, sizes, test.samples, validation_only)


def _never(gradients: object, mean: object) -> float:
    return NEVER


@dataclass
class _Counted:
    """A test, and the samples whose own gradients it was given."""

    test: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float]
    samples: int = 0

    def __call__(self, gradients: Mapping[str, Tensor], mean: Mapping[str, Tensor]) -> float:
        self.samples += len(next(iter(gradients.values())))
        return self.test(gradients, mean)


def _record(
    network: nn.Module, dataset: Dataset, sizes: list[tuple[float, float]], tested: int, validation_only: bool
) -> Record:
    metrics = {"steps": float(len(sizes)), "mean_batch": sizes[-1][0] / len(sizes)}
    metrics |= {"largest_batch": max(size for _, size in sizes), "per_sample_share": tested / sizes[-1][0]}
    splits = {"train": dataset.train, "validation": dataset.validation}
    if not validation_only:
        splits["test"] = dataset.test
    for name, split in splits.items():
        metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = _evaluated(network, split)
    metrics["validation_score"] = metrics["validation_accuracy"]
    diverged = not math.isfinite(metrics["train_loss"])
    series = {"batch_size": Series(tuple(s for s, _ in sizes), tuple(b for _, b in sizes), unit="sample")}
    return Record(metrics=metrics, series=series, status="diverged" if diverged else "done")


@torch.no_grad()
def _evaluated(network: Callable[[Tensor], Tensor], split: Split) -> tuple[float, float]:
    scores = network(split.inputs)
    loss = float(nn.functional.cross_entropy(scores, split.targets))
    return loss, float((scores.argmax(1) == split.targets).double().mean())
