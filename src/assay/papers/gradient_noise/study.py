"""Does annealed gradient noise let a very deep network train from a poor start, and why?

The paper's network, twenty ReLU layers of fifty units, on MNIST with plain SGD and clipped gradients, from weights of
zero, from small ones and from good ones. Two controls ask what the noise does: noise put on the weights once, before
training, and noise of constant size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from assay.errors import InvalidInput
from assay.lab import Experiment, Study, equivalent, greater, less

CLAIM = (
    "Annealed gradient noise alone lets plain gradient descent train a network of twenty layers from weights of zero and "
    "from small random ones, where it fails without; from a good start noise neither helps nor harms."
)


@dataclass(frozen=True)
class Setting:
    """What a scale decides."""

    data: str
    width: int
    depth: int
    epochs: int
    rates: tuple[float, ...]
    tuned: bool = True


SETTINGS = {
    "smoke": Setting("digits(train=300, validation=100, test=300)", 10, 6, 2, (0.1,), tuned=False),
    "desk": Setting(
        "mnist(train=6000, validation=1000, test=3000, pool=2)", 50, 20, 10, (0.02, 0.03, 0.05, 0.07, 0.1, 0.15)
    ),
    "paper": Setting(
        "mnist(train=55000, validation=5000, test=10000)", 50, 20, 20, (0.02, 0.03, 0.05, 0.07, 0.1, 0.15)
    ),
}
CLIP = 10.0
# The paper's variances; each meets two of the rates, so that all arms have as many candidates.
ETAS = (0.01, 0.3, 1.0)
# Of weights: half of, equal to and twice He's for fifty units, each with two rates.
JITTERS = (0.1, 0.2, 0.4)
# Variance of constant noise with the sum over 940 steps of the annealed ones: eta * (941^0.45 - 1) / (0.45 * 940).
CONSTANT = tuple(round(eta * (941**0.45 - 1) / (0.45 * 940), 6) for eta in ETAS)
FEW_RATES = (0.03, 0.05)


def _noise(eta: float, gamma: float = 0.55) -> tuple[str]:
    return (f"gradient-noise(eta={eta}, gamma={gamma}, clip_norm={CLIP})",)


def _model(setting: Setting, start: str, jitter: float = 0.0) -> str:
    network = "assay.papers.gradient_noise.networks:deep_mlp"
    return f"{network}(width={setting.width}, depth={setting.depth}, start={start!r}, jitter={jitter})"


def _arms(setting: Setting) -> dict[str, Experiment]:
    base = Experiment(
        data=setting.data,
        model=_model(setting, "zero"),
        optimizer=f"sgd(lr={setting.rates[-1]})",
        transforms=_noise(0.0),
        epochs=setting.epochs,
        batch_size=64,
        evaluate_every=setting.epochs,
    )
    few = {"optimizer.lr": FEW_RATES}
    arms = {}
    for start in ("zero", "simple", "good"):
        here = base.but(model=_model(setting, start))
        arms[f"{start}/none"] = here.but(tune={"optimizer.lr": setting.rates})
        arms[f"{start}/noise"] = here.but(
            transforms=_noise(ETAS[1]), tune=few | {"transforms": tuple(_noise(eta) for eta in ETAS)}
        )
    arms["zero/jitter-once"] = base.but(
        model=_model(setting, "zero", JITTERS[1]),
        tune=few | {"model": tuple(_model(setting, "zero", jitter) for jitter in JITTERS)},
    )
    arms["zero/constant-noise"] = base.but(
        transforms=_noise(CONSTANT[1], gamma=0.0),
        tune=few | {"transforms": tuple(_noise(eta, gamma=0.0) for eta in CONSTANT)},
    )
    return arms if setting.tuned else {name: arm.but(tune={}) for name, arm in arms.items()}


def study(scale: str) -> Study:
    """Return the study at a scale.

    Args:
        scale: "smoke", "desk" or "paper".

    Raises:
        InvalidInput: If there is no such scale.
    """
    if scale not in SETTINGS:
        raise InvalidInput(f"gradient-noise has no scale {scale!r}; there are {', '.join(SETTINGS)}")
    return Study(
        claim=CLAIM,
        arms=_arms(SETTINGS[scale]),
        expects=[
            greater("test_accuracy", "zero/noise", "zero/none", margin=0.3),
            greater("test_accuracy", "simple/noise", "simple/none"),
            equivalent("test_accuracy", within=0.02, arms=["good/noise", "good/none"]),
            less("test_accuracy", "zero/noise", "good/none"),
        ],
        sources=SOURCES | (UNTUNED if scale == "smoke" else {}),
        limits=LIMITS[scale],
        seeds=2 if scale == "smoke" else 6,
        tune_seeds=1 if scale == "smoke" else 3,
        covers="the split of the data, the initial weights, the order of the mini-batches and the noise",
    )


SCALED = "scaled down because this scale has two cores and minutes"
SOURCES: dict[str, Any] = {
    "data": f"{SCALED}: MNIST as in the paper, fewer images of 14 x 14 pixels",
    "model": "the paper: 20 hidden layers of 50 ReLU units; its three initialisations (section 4.1); jitter is our control",
    "optimizer": "the paper: SGD without momentum",
    "optimizer.lr": "tuned",
    "transforms": "the paper: eta from 0.01, 0.3 and 1, gamma 0.55, gradients clipped at 10; constant noise is our control",
    "tune": "ours: six candidates for every arm; those with a size of noise have three sizes at two rates",
    "rule": "the paper: ordinary gradients",
    "epochs": f"{SCALED}: about 940 steps",
    "batch_size": "ours",
    "checkpoint": "ours: the last state",
    "evaluate_every": "once, at the end",
}
UNTUNED = {
    "optimizer.lr": "one untuned rate: a demonstration of seconds",
    "data": "digits instead of MNIST",
    "model": "fewer and narrower layers",
}
LIMITS = {
    "smoke": "A demonstration on 300 digits and six narrow layers: nothing about the claim.",
    "desk": (
        "One network and one data set of the paper's six tasks: nothing about memory networks, Neural Programmer, Neural "
        "RAM or Neural GPU, and nothing about runs of many epochs. The paper reports the best and the mean over forty runs "
        "per cell; here a rate is chosen on validation data with three seeds per candidate, and what lucky candidates give "
        "is not repeated by every seed; arms with noise have two rates at three sizes of noise, the others six rates. A first "
        "record had one tuning seed and no expectation against a good start. Noise put on once, which does better than "
        "annealed noise, is a control that the paper makes no claim about: it has no expectation. The rates of the arms with noise and jitter were set after one run of each on one other "
        "seed, where twice the larger one overshot from every start."
    ),
    "paper": "The paper's remaining tasks and the initialisations' forty runs per cell.",
}
