"""What an objective costs per training step, against cross-entropy: time and memory kept for backward, in one run.

A step is forward, loss, backward and the optimizer's step of one network on one batch, in float32; every objective has
the same network, data and SGD. Penalties over domains see the batch as two domains, beside cross-entropy. Networks are
small, since there an objective weighs most: "head" is one linear layer on 512 features, "mlp" has two hidden layers of
256 on 196 inputs. Times are interleaved, CPU times with one thread.

To add an objective, give it a line in `OBJECTIVES`: a criterion of (scores, targets) by `criterion_step`, anything else
by a function that takes a `Problem`, builds criterion and optimizer, and returns what one step does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from _measure import interleaved, write_results
from assay.losses.class_masking import MaskedCrossEntropy
from assay.losses.coral import CORALPenalty
from assay.losses.distillation import DistillationLoss
from assay.losses.fish import FishPenalty
from assay.losses.fishr import FishrPenalty
from assay.losses.focal import FocalLoss
from assay.losses.hessian_alignment import HessianAlignmentPenalty
from assay.losses.irm import IRMPenalty
from assay.losses.leave_one_out import LeaveOneOutKNNLoss
from assay.losses.rescaled_mse import RescaledMSELoss
from assay.losses.sop import SOPLoss
from assay.losses.stable_max import StableMaxCrossEntropy
from assay.losses.supervised_contrastive import SupervisedContrastiveLoss
from assay.losses.vrex import VRExPenalty

Step = Callable[[], object]
BASELINE = "cross-entropy"


@dataclass(frozen=True)
class Problem:
    """A network and a batch of 128 of `samples` training samples; `index` are the batch's numbers among them."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    index: Tensor
    samples: int
    classes: int

    def sgd(self) -> torch.optim.Optimizer:
        """Return the optimizer that every objective gets for the network."""
        return torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)


def criterion_step(make: Callable[[], nn.Module], problem: Problem) -> Step:
    """Return the step of a criterion of (scores, targets)."""
    criterion, optimizer = make(), problem.sgd()

    def step() -> None:
        optimizer.zero_grad()
        criterion(problem.model(problem.inputs), problem.targets).backward()
        optimizer.step()

    return step


def distillation_step(problem: Problem) -> Step:
    """Return the step of a distillation from teacher's scores that are at hand."""
    scores = torch.randn(len(problem.targets), problem.classes, generator=torch.Generator().manual_seed(1))
    criterion = DistillationLoss(temperature=4.0)
    return criterion_step(lambda: _WithScores(criterion, scores), problem)


class _WithScores(nn.Module):
    """A loss of scores against a teacher's, where a loss of scores against targets is expected."""

    def __init__(self, criterion: nn.Module, scores: Tensor) -> None:
        super().__init__()
        self.criterion, self.scores = criterion, scores

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss; targets are not read."""
        return self.criterion(scores, self.scores)


def penalty_step(make: Callable[[], nn.Module], problem: Problem) -> Step:
    """Return the step of cross-entropy with a penalty over two domains, each one half of the batch."""
    penalty, optimizer = make(), problem.sgd()
    body, head = problem.model[:-1], problem.model[-1]  # type: ignore[index]

    def step() -> None:
        optimizer.zero_grad()
        features = body(problem.inputs)
        loss = nn.functional.cross_entropy(head(features), problem.targets)
        (loss + penalty(features.chunk(2), problem.targets.chunk(2), head)).backward()
        optimizer.step()

    return step


def sop_step(problem: Problem, sparse: bool) -> Step:
    """Return SOP's step, its noise variables updated by an optimizer of their own."""
    criterion = SOPLoss(problem.samples, problem.classes, sparse=sparse)
    optimizers = [problem.sgd(), torch.optim.SGD(criterion.param_groups(lr_u=10.0, lr_v=10.0))]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        criterion(problem.model(problem.inputs), problem.targets, problem.index).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


# Name -> what makes its step; the baseline first, and in the order of the table.
OBJECTIVES: dict[str, Callable[[Problem], Step]] = {
    BASELINE: partial(criterion_step, nn.CrossEntropyLoss),
    "label smoothing": partial(criterion_step, partial(nn.CrossEntropyLoss, label_smoothing=0.1)),
    "focal": partial(criterion_step, FocalLoss),
    "rescaled MSE": partial(criterion_step, RescaledMSELoss),
    "StableMax": partial(criterion_step, StableMaxCrossEntropy),
    "StableMax, float32": partial(criterion_step, partial(StableMaxCrossEntropy, upcast=False)),
    "SOP": partial(sop_step, sparse=True),
    "SOP, dense gradients": partial(sop_step, sparse=False),
    "masked cross-entropy": partial(criterion_step, MaskedCrossEntropy),
    "distillation": distillation_step,
    "supervised contrastive": partial(criterion_step, SupervisedContrastiveLoss),
    "LOOK, k=20 within the batch": partial(criterion_step, partial(LeaveOneOutKNNLoss, k=20)),
    "HGP": partial(penalty_step, HessianAlignmentPenalty),
    "Hessian's diagonal": partial(penalty_step, partial(HessianAlignmentPenalty, "diagonal")),
    "IRM": partial(penalty_step, IRMPenalty),
    "V-REx": partial(penalty_step, VRExPenalty),
    "Fish": partial(penalty_step, FishPenalty),
    "Fishr": partial(penalty_step, FishrPenalty),
    "CORAL": partial(penalty_step, CORALPenalty),
}


def problem(network: str, classes: int, samples: int) -> Problem:
    """Return a fresh network and batch; the same numbers every time."""
    generator = torch.Generator().manual_seed(0)
    width = {"head": 512, "mlp": 196}[network]
    layers = [nn.Linear(512, classes)]
    if network == "mlp":
        layers = [nn.Linear(196, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes)]  # type: ignore[list-item]
    inputs = torch.randn(128, width, generator=generator)
    targets, index = (torch.randint(n, (128,), generator=generator) for n in (classes, samples))
    return Problem(nn.Sequential(*layers), inputs, targets, index, samples, classes)


def repeated(step: Step, times: int) -> Step:
    """Return many steps as one call, long enough for the clock."""

    def call() -> None:
        for _ in range(times):
            step()

    return call


def saved_bytes(made: Problem, make: Callable[[Problem], Step]) -> int:
    """Return the bytes of distinct tensors that a step keeps for backward, beyond parameters, inputs and targets."""
    step = make(made)
    given = {t.untyped_storage().data_ptr() for t in (*made.model.parameters(), made.inputs, made.targets, made.index)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def compare(network: str, classes: int, samples: int, steps: int, rounds: int) -> list[dict[str, object]]:
    """Return a row per objective for one network and number of classes."""
    calls = {name: repeated(make(problem(network, classes, samples)), steps) for name, make in OBJECTIVES.items()}
    times = interleaved(calls, rounds, patience=1e9)
    rows: list[dict[str, object]] = []
    for name, time in times.items():
        rows.append(
            {
                "network": network,
                "classes": classes,
                "objective": name,
                "microseconds per step": 1e6 * time["cpu_seconds"] / steps,
                "time / cross-entropy": time["cpu_seconds"] / times[BASELINE]["cpu_seconds"],
                "KiB kept for backward": saved_bytes(problem(network, classes, samples), OBJECTIVES[name]) / 1024,
                "rounds": time["rounds"],
            }
        )
    return rows


def main() -> None:
    """Measure and write bench/results/objectives.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps and rounds, nothing written")
    parser.add_argument(
        "--samples", type=int, default=50_000, help="size of the training set, which SOP keeps tables of"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, rounds = (5, 2) if arguments.quick else (50, 7)
    rows = [
        row
        for network in ("head", "mlp")
        for classes in (10, 100)
        for row in compare(network, classes, arguments.samples, steps, rounds)
    ]
    if arguments.quick:
        print(*rows, sep="\n")
        return
    summary = {
        f"{row['objective']}, {row['network']}, {row['classes']} classes: time / cross-entropy": row[
            "time / cross-entropy"
        ]
        for row in rows
        if row["objective"] != BASELINE
    }
    settings = {"batch": 128, "samples": arguments.samples, "steps": steps, "rounds": rounds, "threads": 1}
    write_results("objectives", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
