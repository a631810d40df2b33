"""Does plain SGD accumulate knowledge over hundreds of small tasks although it forgets at each? (arXiv:2207.04543).

Every task shows two classes, which come back at random. The same network also sees the classes in blocks that do not come
back (the classical benchmark, from below) and all at once (from above). Masked scores and replay of rare classes are the
paper's remedies. Momentum and random replay are shown without an expectation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from assay.lab.arms import Arm
from assay.lab.expectations import Expectation, above, greater
from assay.lab.study import Study
from assay.lab.tuned_call import TunedCall
from assay.papers.scole.training import accumulate

__all__ = ["study"]

RATES = (0.03, 0.1, 0.3)
MOMENTUM_RATES = (0.003, 0.01, 0.03)  # momentum 0.9 makes a step ten times as long in the end


@dataclass(frozen=True)
class Setting:
    """What a scale decides: data, network, length of the sequence, samples and updates of a task, points of a grid."""

    data: str
    model: str
    num_tasks: int
    per_class: int
    updates: int
    rates: int = 3


SETTINGS = {
    "smoke": Setting("digits(train=1000, validation=300, test=400)", "mlp(width=32)", 30, 50, 4, rates=2),
    "desk": Setting("mnist(train=7000, validation=1000, test=2000, pool=2)", "mlp(width=(128, 50))", 250, 200, 7),
    "paper": Setting("mnist(train=54000, validation=6000, test=10000)", "mlp(width=(512, 256))", 1000, 5400, 169),
}
UNEQUAL = {"exponent": 4.0}
ARMS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "sgd": ({}, RATES),
    "masked": ({"loss": "masked-cross-entropy"}, RATES),
    "momentum": ({"optimizer": "sgd(momentum=0.9)"}, MOMENTUM_RATES),
    "blocked": ({"order": "blocked"}, RATES),
    "joint": ({"order": "joint"}, RATES),
    "unequal": (UNEQUAL, RATES),
    "unequal-random-replay": (UNEQUAL | {"replay": "random"}, RATES),
    "unequal-frequency-replay": (UNEQUAL | {"replay": "frequency"}, RATES),
}


def _arm(setting: Setting, changes: dict[str, Any], rates: tuple[float, ...]) -> Arm:
    shared = {
        "data": setting.data,
        "model": setting.model,
        "order": "recurring",
        "num_tasks": setting.num_tasks,
        "classes_per_task": 2,
        "per_class": setting.per_class,
        "updates": setting.updates,
        "batch_size": 64,
        "optimizer": "sgd",
        "lr": rates[1],
    }
    return TunedCall(accumulate, shared | changes, tune={"lr": rates[: setting.rates]})


def _expectations() -> list[Expectation]:
    return [
        above("gain", 0.3, arms=["sgd"]),
        above("forgotten", 0.0, arms=["sgd"]),
        greater("late", "sgd", "blocked", margin=0.3),
        greater("late", "masked", "sgd"),
        greater("rare_accuracy", "unequal-frequency-replay", "unequal"),
    ]


def study(scale: str) -> Study:
    """Return the study at a scale: "smoke", "desk" or "paper"."""
    setting = SETTINGS[scale]
    return Study(
        claim=(
            "Over a long sequence of two-class tasks whose classes recur, plain SGD gets far better at all classes together "
            "although each task makes it forget others; it ends far above the same training on tasks that do not recur. "
            "Masking the scores of absent classes, and replaying rare classes, make it better still."
        ),
        arms={name: _arm(setting, *arm) for name, arm in ARMS.items()},
        expects=_expectations(),
        sources=SOURCES | (SOURCES_PAPER if scale == "paper" else {}),
        limits=LIMITS,
        seeds=2 if scale == "smoke" else 6,
        covers="the split of the data, the classes and samples of the tasks, and the initial weights",
    )


SOURCES = {
    "data": "scaled down: 7,000 of the paper's MNIST images for training, at 14 x 14 pixels",
    "model": "scaled down from the official code's small convolutional network",
    "order": "the paper: classes drawn at random; disjoint tasks are the benchmark that it argues with",
    "num_tasks": "scaled down from 500 to 1,000",
    "classes_per_task": "the paper: 2",
    "per_class": "scaled down: a fresh sample of each class instead of all its images",
    "updates": "the official code's one epoch; the same number with replay, so that budgets are equal",
    "batch_size": "official code: 64",
    "optimizer": "the paper: SGD without momentum; 0.9 is one of its other settings",
    "lr": "tuned for every arm on validation data, by the mean accuracy of the last 20 tasks",
    "loss": "the paper: cross-entropy, plain or masked by the classes in the batch",
    "exponent": "the paper varies the entropy of the class frequencies; 4 makes the rarest class about 11 times as rare",
    "replay": "official code: 200 samples per class, frequencies 0.01 to 0.1, after 3 tasks",
    "tune": "ours: three rates a factor of about 3 apart for every arm",
}
SOURCES_PAPER = {
    "data": "the paper: MNIST, a tenth of the training images held out",
    "model": "replaced: a multi-layer perceptron instead of the official code's convolutional network",
    "num_tasks": "the paper: 1,000",
    "per_class": "the paper: all images of the class",
    "updates": "the paper: one epoch of two classes",
}
LIMITS = (
    "A small multi-layer perceptron on 14 x 14 digits through 250 tasks: nothing here speaks of convolutional networks, "
    "photographs, pre-trained encoders, Adam or thousands of tasks. Accuracy swings from task to task, so early and late are means "
    "over 10 and 20 tasks. With unequal frequencies every arm is tuned for the accuracy over all classes, not for rare ones. "
    "Replay takes its updates from the task's own samples, where the paper adds them. Sizes, rates and the "
    "margins of 0.3 were set after prototypes of two seeds, and a trial of another, had been seen."
)
