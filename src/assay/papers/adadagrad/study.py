"""Do batches that grow by a test of the gradient's noise keep the quality of small batches at far fewer steps?

Logistic regression and a small MLP on MNIST, and the MLP on digits, with AdaGrad, the same number of samples for every
arm. Constant batches, the norm test at two tolerances, the augmented inner-product test, and two controls: a batch that
grows linearly whatever the gradients say, and a constant one of the size that the norm test has on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from assay.errors import InvalidInput
from assay.lab import Study, TunedCall, greater, ratio
from assay.lab.expectations import Expectation
from assay.papers.adadagrad.training import train

CLAIM = (
    "Batches that grow when a test finds the gradient too noisy generalise as small constant batches do, in less than a "
    "tenth of the steps, and better than large constant batches and than constant ones of their mean size, at an equal "
    "number of samples."
)


@dataclass(frozen=True)
class Task:
    """Data, network, passes, and constant sizes: the small one, a middle one and a large one."""

    data: str
    model: str
    passes: int
    sizes: tuple[int, int, int]


@dataclass(frozen=True)
class Setting:
    """What a scale decides."""

    tasks: dict[str, Task]
    rates: tuple[float, ...]


MNIST = "mnist(train=4000, validation=1000, test=3000, pool=2)"
SETTINGS = {
    "smoke": Setting(
        {"digits/mlp": Task("digits(train=300, validation=100, test=300)", "mlp(width=8, depth=1)", 2, (8, 64, 300))},
        (0.03,),
    ),
    "desk": Setting(
        {
            "mnist/logistic": Task(MNIST, "mlp(depth=0)", 15, (16, 420, 2000)),
            "mnist/mlp": Task(MNIST, "mlp(width=64, depth=1)", 15, (16, 420, 2000)),
            "digits/mlp": Task("digits", "mlp(width=64, depth=1)", 30, (16, 280, 1000)),
        },
        (1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    ),
    "paper": Setting(
        {
            "mnist/logistic": Task(
                "mnist(train=55000, validation=5000, test=10000)", "mlp(depth=0)", 100, (2, 2048, 55000)
            ),
            "mnist/cnn": Task(
                "mnist(train=55000, validation=5000, test=10000)", "cnn(channels=(16, 32))", 100, (8, 2048, 55000)
            ),
        },
        (3e-3, 8e-3, 3e-2),
    ),
}
SCHEMES = {
    "norm-test": "norm-test(eta=1.0)",
    "norm-test-strict": "norm-test(eta=0.5)",
    "augmented-test": "augmented-inner-product-test(theta=0.5, nu=1.0)",
    "ramp": "ramp",
}


def _arms(setting: Setting) -> dict[str, TunedCall]:
    arms = {}
    for name, task in setting.tasks.items():
        small, middle, large = task.sizes
        arguments: dict[str, Any] = {
            "data": task.data,
            "model": task.model,
            "scheme": "constant",
            "optimizer": "adagrad",
            "lr": setting.rates[0],
            "passes": task.passes,
            "batch_size": small,
            "max_batch_size": large,
            "subsample": 512,
        }
        tuned = TunedCall(train, arguments, {"lr": setting.rates})
        arms[f"{name}/constant-small"] = tuned
        arms[f"{name}/constant-middle"] = tuned.but(batch_size=middle)
        arms[f"{name}/constant-large"] = tuned.but(batch_size=large)
        arms |= {f"{name}/{label}": tuned.but(scheme=scheme) for label, scheme in SCHEMES.items()}
        norm = tuned.but(scheme=SCHEMES["norm-test"], optimizer="ada-grad-norm")
        arms[f"{name}/norm-test-scalar"] = TunedCall(
            train, norm.arguments, {"lr": tuple(30 * rate for rate in setting.rates)}
        )
    return arms


def _expectations(tasks: list[str]) -> list[Expectation]:
    expects: list[Expectation] = []
    for task in tasks:
        adaptive = f"{task}/norm-test"
        expects += [
            greater("test_accuracy", adaptive, f"{task}/constant-small", margin=-0.01),
            ratio("steps", adaptive, f"{task}/constant-small", below=0.1),
            greater("test_accuracy", adaptive, f"{task}/constant-large"),
            greater("test_accuracy", adaptive, f"{task}/constant-middle"),
        ]
    return expects


def study(scale: str) -> Study:
    """Return the study at a scale.

    Args:
        scale: "smoke", "desk" or "paper".

    Raises:
        InvalidInput: If there is no such scale.
    """
    if scale not in SETTINGS:
        raise InvalidInput(f"adadagrad has no scale {scale!r}; there are {', '.join(SETTINGS)}")
    setting = SETTINGS[scale]
    return Study(
        claim=CLAIM,
        arms=_arms(setting),
        expects=_expectations(list(setting.tasks)),
        sources=SOURCES,
        limits=LIMITS[scale],
        seeds=2 if scale == "smoke" else 6,
        tune_seeds=1 if scale == "smoke" else 3,
    )


SOURCES = {
    "data": "scaled down: the paper's MNIST with fewer images of 14 x 14 pixels; digits are ours",
    "model": "the paper's logistic regression; an MLP in place of its CNN, for time",
    "scheme": "the paper's norm test and augmented test; eta as large as its authors use or larger, see the limits",
    "optimizer": "the paper: AdaGrad, and AdaGrad-Norm",
    "lr": "tuned",
    "tune": "ours: as many rates for every arm; thirty times as large for AdaGrad-Norm, whose gradient is divided by one norm",
    "passes": "ours, as many for every arm: the paper counts samples too",
    "batch_size": "the paper: 2 to 16 at first",
    "max_batch_size": "the paper: the whole training set, or nearly",
    "subsample": "ours: variances from no more samples, for memory",
}
LIMITS = {
    "smoke": "A demonstration on 300 digits: nothing about the claim.",
    "desk": (
        "Small networks on a few thousand small images and fifteen to thirty passes: nothing about ResNets, ImageNet or "
        "time on parallel hardware, for which large batches are made; the gradients of single samples, which tests cost, are "
        "not charged ('per_sample_share' is how many). The paper's tolerances, 0.1 to 0.5, jump to the largest batch within a few "
        "steps here; 1.0, which is near the least that ever fires on such small first batches, was chosen after runs on one "
        "other seed, and 0.5 is shown beside it. A first record had tests that compared the variance with the mean of the 512 "
        "tested samples alone, so that batches hardly grew beyond 512, one tuning seed and four rates; it failed too. The middle size, "
        "near the norm test's mean batch on one other seed, had no expectation then. The linear ramp and AdaGrad-Norm have none."
    ),
    "paper": "Of the paper's sets only MNIST: CIFAR-10 and ImageNet need a ResNet and a GPU.",
}
