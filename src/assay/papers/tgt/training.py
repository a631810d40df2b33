"""Train a small student on few labels, by itself or with a teacher, on inputs that are given or made.

One loop for all arms: the same student, the same labelled batches, the same number of steps, and one teacher query per
step and sample wherever there is a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.batching import batches
from assay.data.dataset import Dataset, stratified_split
from assay.data.latent_exploration import LatentExploration
from assay.lab.record import Record
from assay.lab.resources import check_deadline
from assay.losses.teacher_guided import TeacherGuidedLoss
from assay.models.mlp import MLP
from assay.models.vae import VAE
from assay.names import resolve
from assay.streams import Streams

__all__ = ["METHODS", "distil", "teachers"]

METHODS = ("one-hot", "distil", "input-noise", "random", "gradient", "all-inputs")


class Teachers(NamedTuple):
    """The data, the frozen labeler and the frozen generator."""

    data: Dataset
    labeler: nn.Module
    vae: VAE


@lru_cache(maxsize=1)  # trials run seed by seed, so that all arms of a seed find theirs here
def teachers(streams: Streams, data: str, width: int, latent: int, labeler_epochs: int, vae_epochs: int) -> Teachers:
    """Train labeler (on labels) and generator (without) on the whole training split.

    Args:
        streams: "data" draws the split, "teachers" weights, batches and codes.
        data: A loader of `assay.data` by name.
        width: Units of each hidden layer of both.
        latent: Dimension of the codes.
        labeler_epochs: Of Adam at 1e-3 in batches of 128.
        vae_epochs: Likewise.
    """
    dataset: Dataset = resolve("data", data)(generator=streams.torch("data"))
    generator = streams.torch("teachers")
    labeler = MLP(dataset.input_shape, dataset.outputs, width, generator=generator)
    vae = VAE(dataset.input_shape, latent, width, generator=generator)
    _fit(labeler, lambda x, y: F.cross_entropy(labeler(x), y), dataset, labeler_epochs, generator)
    _fit(vae, lambda x, y: vae.negative_elbo(x, generator=generator), dataset, vae_epochs, generator)
    return Teachers(dataset, labeler, vae)


def _fit(
    network: nn.Module,
    objective: Callable[[Tensor, Tensor], Tensor],
    data: Dataset,
    epochs: int,
    generator: torch.Generator,
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in batches(data.train, 128, generator):
            optimizer.zero_grad()
            objective(x, y).backward()
            optimizer.step()
        check_deadline()
    network.eval().requires_grad_(False)


def distil(
    streams: Streams,
    *,
    method: str,
    data: str,
    labelled: int,
    width: int,
    steps: int,
    batch_size: int,
    lr: float,
    teacher_width: int,
    latent: int,
    labeler_epochs: int,
    vae_epochs: int,
    temperature: float = 1.0,
    noise: float = 0.0,
    sigma: float = 0.0,
    eta: float = 0.0,
    validation_only: bool = False,
) -> Record:
    """Train a student and measure its accuracy, and how the teacher fares on what the student was shown.

    Args:
        streams: As for `teachers`; "labelled" draws the labelled images, "init" the weights, "order" the batches, "noise"
            what is explored.
        method: One of `METHODS`: what the teacher is asked about is nothing, the labelled inputs, these with noise, what
            `LatentExploration` makes of them at random or by gradient, or inputs of the whole training split.
        data: A loader of `assay.data` by name.
        labelled: N, images with labels; classes in proportion.
        width: Units of the student's two hidden layers.
        steps: Of Adam.
        batch_size: Labelled images per step, drawn with replacement, and as many queries.
        lr: The student's learning rate.
        teacher_width: Units of each hidden layer of labeler and generator.
        latent: Dimension of the codes.
        labeler_epochs: See `teachers`.
        vae_epochs: See `teachers`.
        temperature: Of the distillation.
        noise: Deviation of noise on inputs, in units of the data's.
        sigma: Deviation of noise on codes.
        eta: Length of the step by gradient.
        validation_only: Leave the test split alone.
    """
    found = teachers(streams, data, teacher_width, latent, labeler_epochs, vae_epochs)
    train = found.data.train
    (chosen,) = stratified_split(train.targets, [labelled], streams.torch("labelled"))
    student = MLP(found.data.input_shape, found.data.outputs, width, generator=streams.torch("init"))
    explore = _exploration(method, found, noise, sigma, eta, streams.torch("noise"))
    criterion = TeacherGuidedLoss(explore, temperature=temperature)
    optimizer, order = torch.optim.Adam(student.parameters(), lr=lr), streams.torch("order")
    for step in range(steps):
        batch = chosen[torch.randint(labelled, (batch_size,), generator=order)]
        x, y = train.inputs[batch], train.targets[batch]
        optimizer.zero_grad()
        guided = method != "one-hot"
        loss = criterion(x, y, student, found.labeler) if guided else F.cross_entropy(student(x), y)
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            check_deadline()
    if validation_only:
        split = found.data.validation
        return Record(metrics={"validation_score": _accuracy(student, split.inputs, split.targets)})
    return Record(metrics=_metrics(student, found, explore, train.inputs[chosen], train.targets[chosen]))


def _exploration(
    method: str, found: Teachers, noise: float, sigma: float, eta: float, generator: torch.Generator
) -> Callable[..., Tensor] | None:
    """Return what makes the teacher's questions out of a batch; None for the batch itself."""
    if method in ("random", "gradient"):
        return LatentExploration(found.vae.encode, found.vae.decode, sigma, eta, generator=generator)
    inputs = found.data.train.inputs

    def noisy(x: Tensor, student: object, teacher: object) -> Tensor:
        return x + noise * torch.randn(x.shape, generator=generator)

    def any_input(x: Tensor, student: object, teacher: object) -> Tensor:
        return inputs[torch.randint(len(inputs), (len(x),), generator=generator)]

    return {"one-hot": None, "distil": None, "input-noise": noisy, "all-inputs": any_input}[method]


@torch.no_grad()
def _accuracy(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    accuracy = (network(x).argmax(dim=1) == y).double().mean().item()
    if not math.isfinite(float(network(x).sum())):
        raise FloatingPointError("scores are not finite")
    return accuracy


@torch.no_grad()
def _metrics(
    student: nn.Module, found: Teachers, explore: Callable[..., Tensor] | None, x: Tensor, y: Tensor
) -> dict[str, float]:
    test = found.data.test
    explored = x if explore is None else explore(x, student, found.labeler)
    log_p = found.labeler(explored).log_softmax(dim=1)
    return {
        "test_accuracy": _accuracy(student, test.inputs, test.targets),
        "teacher_accuracy": _accuracy(found.labeler, test.inputs, test.targets),
        "teacher_accuracy_reconstructed": _accuracy(found.labeler, found.vae(test.inputs), test.targets),
        "teacher_entropy": -(log_p.exp() * log_p).sum(dim=1).mean().item(),
        "label_kept": (log_p.argmax(dim=1) == y).double().mean().item(),
    }
