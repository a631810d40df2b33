"""The parts of one trial, built from their streams and tried on each other before any training."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assay.errors import AssayError, InvalidInput
from assay.names import resolve
from assay.streams import Streams

if TYPE_CHECKING:
    from assay.data.dataset import Dataset
    from assay.lab.experiment import Experiment
    from assay.rules.rule import Rule

__all__ = ["Setup", "batch_size_of", "build", "building", "check_budget", "check_update", "transformed", "whole_epochs"]


@dataclass
class Setup:
    """The parts of one trial."""

    dataset: Dataset
    rule: Rule
    loss: Callable[[Tensor, Tensor], Tensor] | None
    watch: Any
    noise: torch.Generator


def build(experiment: Experiment, streams: Streams) -> Setup:
    """Build the parts and try the rule on two samples.

    Raises:
        InvalidInput: If they do not fit together.
    """
    load = resolve("data", experiment.data)
    with building("data", experiment.data):
        dataset = load(generator=streams.torch("data")) if "generator" in _parameters(load) else load()
    torch.manual_seed(streams.entropy("init"))
    with building("model", experiment.model):
        model = _build_model(experiment, dataset)
    with building("loss", experiment.loss):
        loss = _build_loss(experiment, dataset)
    with building("rule", experiment.rule):
        rule = _build_rule(experiment, dataset, model, loss, streams)
    _check_output(rule, dataset)
    learns_loss = "loss" in _parameters(type(rule))
    if learns_loss:
        _check_loss(experiment, rule, dataset, loss)
    watch = None
    if experiment.probes:
        from assay.watch import Watch

        watch = Watch(rule.model, probes=list(experiment.probes), data=dataset.train, rule=rule, loss=loss)
    return Setup(dataset, rule, loss if learns_loss else None, watch, streams.torch("transform"))


@contextmanager
def building(field: str, part: Any) -> Iterator[None]:
    """Say which part it was that refused its arguments."""
    try:
        yield
    except AssayError:
        raise
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{field} {part!r}: {error}") from error


def transformed(experiment: Experiment, optimizer: torch.optim.Optimizer, noise: torch.Generator) -> None:
    """Put the experiment's transforms on an optimizer; those that draw random numbers draw from `noise`.

    Raises:
        InvalidInput: If one is no transform.
    """
    for transform in experiment.transforms:
        make = resolve("optim", transform)
        with building("transform", transform):
            made = make(optimizer, **({"generator": noise} if "generator" in _parameters(make) else {}))
        if isinstance(made, torch.optim.Optimizer):
            raise InvalidInput(f"{transform!r} is an optimizer of its own, not a transform; train it in a Call")


def _parameters(target: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(target).parameters)


def _build_model(experiment: Experiment, dataset: Dataset) -> nn.Module:
    make = resolve("models", experiment.model)
    try:
        inspect.signature(make).bind(dataset.input_shape, dataset.outputs)
    except TypeError:
        return make()
    return make(dataset.input_shape, dataset.outputs)


def _build_loss(experiment: Experiment, dataset: Dataset) -> Callable[[Tensor, Tensor], Tensor]:
    if experiment.loss is None:
        return nn.CrossEntropyLoss() if dataset.num_classes else nn.MSELoss()
    make = resolve("losses", experiment.loss)
    return make() if isinstance(make, (type, partial)) else make


def _build_rule(
    experiment: Experiment, dataset: Dataset, model: nn.Module, loss: Callable[..., Tensor], streams: Streams
) -> Rule:
    make = resolve("rules", experiment.rule)
    takes = _parameters(make)
    if experiment.loss is not None and "loss" not in takes:
        raise InvalidInput(
            f"rule {experiment.rule!r} defines its own loss and can't use {experiment.loss!r}; leave the loss out"
        )
    if "num_classes" in takes and dataset.num_classes is None:
        raise InvalidInput(f"rule {experiment.rule!r} needs class labels, but the targets of {dataset.name!r} are none")
    offered = {"num_classes": dataset.num_classes, "loss": loss, "generator": streams.torch("rule")}
    bound = make.keywords if isinstance(make, partial) else {}
    return make(model, **{k: v for k, v in offered.items() if k in takes and k not in bound})


def _check_output(rule: Rule, dataset: Dataset) -> None:
    """Refuse a model whose scores do not fit the data before any training."""
    inputs = dataset.train.inputs[:2]
    try:
        shape = tuple(rule.predict(inputs).shape)
    except (RuntimeError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"the model can't take inputs of shape {tuple(inputs.shape)}: {reason}") from error
    if dataset.num_classes is not None and shape != (len(inputs), dataset.num_classes):
        raise InvalidInput(
            f"the model gives scores of shape {shape} for {len(inputs)} samples; "
            f"expected ({len(inputs)}, {dataset.num_classes}): one score per class of {dataset.name!r}"
        )


def _check_loss(experiment: Experiment, rule: Rule, dataset: Dataset, loss: Callable[..., Tensor]) -> None:
    """Refuse a loss that the model's scores and the data's targets can't be given to."""
    from assay.rules._loss_check import check_loss

    targets = dataset.train.targets[: batch_size_of(experiment, rule)]
    scores = rule.predict(dataset.train.inputs[:2])
    check_loss(loss, scores.new_zeros(len(targets), *scores.shape[1:]), targets)


def batch_size_of(experiment: Experiment, rule: Rule) -> int | None:
    """Return the samples per update; None is all of them, as a rule needs that does not learn from mini-batches."""
    return experiment.batch_size if rule.streaming else None


def check_update(experiment: Experiment, setup: Setup) -> None:
    """Try one update signal on a copy of the rule: some models refuse gradients only when they meet one.

    Raises:
        InvalidInput: With what the rule, the model or torch said.
    """
    rule = copy.deepcopy(setup.rule)
    rule.begin(rule.phase_names[0])
    rule.train()
    split, size = setup.dataset.train, batch_size_of(experiment, rule)
    try:
        rule.backward(split.inputs[:size], split.targets[:size])
    except AssayError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"rule {experiment.rule!r} can't train {experiment.model!r}: {reason}") from error


def check_budget(experiment: Experiment, setup: Setup) -> None:
    """Refuse a budget of which a phase of the rule would get less than one update, and so be left out."""
    rule, samples = setup.rule, len(setup.dataset.train.inputs)
    phases = len(rule.phase_names)
    if experiment.seconds is not None or phases == 1:
        return
    update = min(batch_size_of(experiment, rule) or samples, samples)
    budget = experiment.samples if experiment.samples is not None else (experiment.epochs or 0.0) * samples
    if budget / phases < update * (1 - 1e-9):
        whole = "" if rule.streaming else ", since it learns from all samples at once"
        raise InvalidInput(
            f"rule {experiment.rule!r} trains in {phases} phases of at least one update of {update} samples{whole}; "
            f"the budget of {budget / samples:g} epochs is too small: give at least {phases * update / samples:.3g}"
        )


def whole_epochs(experiment: Experiment, setup: Setup) -> int:
    """Return the number of epochs that the rule may divide among its phases."""
    samples = len(setup.dataset.train.inputs)
    if experiment.epochs is not None:
        return max(1, math.ceil(experiment.epochs))
    # A budget in seconds has no known number of epochs: phases get shares of a fixed, divisible one.
    return max(1, math.ceil(experiment.samples / samples)) if experiment.samples is not None else 1000
