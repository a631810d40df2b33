"""Does a student with few labels learn more from a teacher that also makes inputs for it? (arXiv:2208.06825).

A labeler and a generator are trained on many digits. Students have 100 or 500 labelled ones and learn from the labels
alone, from the teacher's answers on them, or from its answers on inputs made near them in the generator's latent space. Noise
on the inputs, and the teacher's answers on all of the data, are shown without an expectation; so is exploration by gradient.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from assay.lab.arms import Arm
from assay.lab.expectations import Expectation, above, greater
from assay.lab.quantities import Quantity, at, difference
from assay.lab.study import Study
from assay.lab.tuned_call import TunedCall
from assay.papers.tgt.training import distil

__all__ = ["study"]

# What each arm changes, and the one number that it tunes.
ARMS: dict[str, tuple[dict[str, Any], str, tuple[float, ...]]] = {
    "one-hot": ({}, "lr", (1e-3, 3e-3, 1e-2)),
    "distil": ({}, "temperature", (4.0, 8.0, 16.0)),
    "input-noise": ({}, "noise", (1.0, 2.0, 4.0)),
    "random": ({}, "sigma", (0.5, 1.0, 2.0)),
    "gradient": ({"sigma": 0.5}, "eta", (2.0, 4.0, 8.0)),
    "all-inputs": ({}, "temperature", (4.0, 8.0, 16.0)),
}


@dataclass(frozen=True)
class Setting:
    """What a scale decides beside the numbers of labels: data, sizes of networks, length of training."""

    data: str
    width: int
    steps: int
    teacher_width: int
    latent: int
    labeler_epochs: int
    vae_epochs: int
    batch_size: int = 64


SETTINGS = {
    "smoke": Setting("digits(train=1000, validation=200, test=300)", 32, 60, 32, 8, 2, 2),
    "desk": Setting("mnist(train=7500, validation=300, test=2000, pool=2)", 64, 1000, 256, 16, 6, 12),
    "paper": Setting("mnist(train=54000, validation=6000, test=10000)", 256, 20_000, 1024, 32, 30, 60),
}
FEW, MORE = 100, 500


def _arm(setting: Setting, labelled: int, name: str) -> Arm:
    changes, tuned, grid = ARMS[name]
    shared = {**asdict(setting), "method": name, "labelled": labelled, "lr": 1e-3, "temperature": 8.0}
    return TunedCall(distil, shared | changes | {tuned: grid[1]}, tune={tuned: grid})


def _gain(labelled: int) -> Quantity:
    return difference(at("test_accuracy", f"random-{labelled}"), at("test_accuracy", f"distil-{labelled}"))


def _expectations() -> list[Expectation]:
    return [
        greater("test_accuracy", f"distil-{FEW}", f"one-hot-{FEW}"),
        greater("test_accuracy", f"random-{FEW}", f"distil-{FEW}", margin=0.01),
        above(difference(_gain(FEW), _gain(MORE)), 0.0),
    ]


def study(scale: str) -> Study:
    """Return the study at a scale: "smoke", "desk" or "paper"."""
    setting = SETTINGS[scale]
    cells = [(FEW, name) for name in ARMS] + [(MORE, name) for name in ("distil", "random")]
    return Study(
        claim=(
            "A student with few labels gets better with a teacher's soft answers on them, and clearly better still with its "
            "answers on inputs explored near them in a generator's latent space; the gain of exploring is larger the fewer "
            "the labels."
        ),
        arms={f"{name}-{labelled}": _arm(setting, labelled, name) for labelled, name in cells},
        expects=_expectations(),
        sources=SOURCES | (SOURCES_PAPER if scale == "paper" else {}),
        limits=LIMITS,
        seeds=2 if scale == "smoke" else 6,
        covers="the split, the labelled images, teachers, initial weights, batches and noise",
    )


SOURCES = {
    "method": "the paper: its three ways of training; noise on inputs and all inputs are our controls",
    "data": "scaled down from ImageNet-LT, text classification and retrieval to 14 x 14 digits",
    "labelled": "ours: low data, with and without 5 times as much",
    "width": "scaled down: a student far smaller than the teacher",
    "steps": "scaled down; the same for every arm",
    "batch_size": "ours",
    "lr": "ours: Adam's default; tuned for the student without a teacher, which has nothing else to tune",
    "teacher_width": "scaled down from a large pre-trained labeler and generator",
    "latent": "ours",
    "labeler_epochs": "ours: enough for a teacher far better than its students",
    "vae_epochs": "ours",
    "temperature": "tuned for plain distillation; elsewhere ours, what a prototype found best for plain distillation",
    "noise": "tuned",
    "sigma": "tuned for random exploration; before a step by gradient ours",
    "eta": "tuned",
    "tune": "ours: three values of the one number that each arm depends on most, on 300 labelled validation images",
}
SOURCES_PAPER = {
    "data": "replaced: MNIST in full, as Assay has no large pre-trained generator",
    "steps": "ours",
}
LIMITS = (
    "Small fully connected networks on digits: nothing here speaks of ImageNet-LT, text or retrieval, nor of how much a large "
    "pre-trained teacher would give. Both teachers have seen 7,500 images of the same digits, the labeler with labels, so "
    "students with a teacher know more than those without; the arm on all inputs shows what that knowledge is worth. "
    "Validation has more labels than the smaller students' training. Noise on inputs is the control that tells the "
    "manifold from mere augmentation. Sizes, grids and the margin of 0.01 were set after prototypes of two or three seeds, and "
    "trials of another, had been seen."
)
