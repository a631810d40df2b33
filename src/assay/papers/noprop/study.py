"""Do blocks that denoise labels on their own reach backpropagation of the same blocks, and with less memory?

NoProp in discrete time, in continuous time and as flow matching, on one stack of small blocks, against backpropagation
through it: as the paper links the blocks, and as a plain residual network, since the paper's links (a softmax between
blocks and a layer behind their mixtures) train slowly. Every block sees the input, so the controls are the same blocks
without denoising: one alone, all of them each by its own cross-entropy, and all of them random below a trained head.
"""

from __future__ import annotations

from typing import Any

from assay.errors import InvalidInput
from assay.lab import Experiment, Study, greater, ratio
from assay.lab.expectations import Expectation

CLAIM = (
    "Blocks that each learn alone to denoise label embeddings (NoProp in discrete time) classify as well as "
    "backpropagation through the same blocks, to half a point, and keep less than half as much for the backward pass; "
    "of the two forms in continuous time, flow matching classifies better than diffusion."
)

CONTROLS = "assay.papers.noprop.controls"

# Learning rates to try, four for every arm: where its own optimum lies.
USUAL, HIGH = (1e-3, 3e-3, 1e-2, 3e-2), (3e-2, 1e-1, 3e-1, 1.0)

# Data, blocks, options of every block, passes over the data, options of prediction in continuous time.
Setting = tuple[str, int, str, int, str]
SETTINGS: dict[str, dict[str, Setting]] = {
    "smoke": {"digits": ("digits(train=300, validation=100, test=200)", 3, "width=16", 2, "inference_steps=10")},
    "desk": {
        "mnist": ("mnist(train=3000, validation=1000, test=3000, pool=2)", 4, "width=64", 10, "inference_steps=50"),
        "digits": ("digits", 4, "width=64", 15, "inference_steps=50"),
    },
    "paper": {
        "mnist": (
            "mnist(train=55000, validation=5000, test=10000)",
            10,
            "encoder='conv', dropout=0.2",
            100,
            "inference_steps=1000",
        ),
        "cifar10": (
            "cifar10(train=45000, validation=5000, test=10000)",
            10,
            "encoder='conv', dropout=0.2",
            150,
            "inference_steps=1000",
        ),
    },
}

SCALED = "scaled down because this scale has two cores and minutes"
SOURCES = {
    "data": f"{SCALED}: MNIST is one of the paper's data sets, here 14 x 14 pixels; digits are scikit-learn's",
    "model": f"{SCALED}: figure 6 with an MLP of 64 units for the image path; T = 4 blocks, 10 in the paper",
    "rule": "section 3; one-hot embeddings; every mini-batch trains all T blocks, which the paper does pass by pass; "
    f"{SCALED}: 50 steps of prediction in continuous time, 1000 in the paper",
    "optimizer": "section 4: AdamW with weight decay 1e-3; there Adam for the kinds in continuous time, here one for all",
    "optimizer.lr": "tuned",
    "schedule": "ours, for every arm: a constant rate favours whoever is tuned to a small one",
    "tune": "four rates for every arm, around the best of trials on one seed",
    "epochs": f"{SCALED}: 100 in the paper; a single block gets T times as many, so that all arms do the same block "
    "passes; the random blocks only run forward",
    "batch_size": "section 4: 128",
    "checkpoint": "the last state, for every arm",
    "evaluate_every": "once, at the end",
    "count_cost": "ours: bytes kept for the backward passes of one update in place of the paper's GPU memory",
}
OTHER_SOURCES: dict[str, dict[str, str]] = {
    "smoke": {
        "data": "scikit-learn's digits, 8 x 8 pixels: a demonstration of seconds",
        "optimizer.lr": "one untuned rate for every arm: a demonstration of seconds",
    },
    "desk": {},
    "paper": {
        "data": "two of the paper's three data sets",
        "model": "figure 6; T = 10; dropout 0.2",
        "rule": "section 3; one-hot embeddings; every mini-batch trains all T blocks; 1000 steps of prediction",
        "optimizer.lr": "section 4: 1e-3",
        "schedule": "ours, for every arm",
        "epochs": "section 4: 100 on MNIST, 150 on CIFAR-10; a single block gets T times as many",
    },
}

LIMITS = {
    "smoke": "A demonstration on 300 digits of 8 x 8 pixels with one untuned learning rate: nothing about the claim.",
    "desk": (
        "Small fully connected blocks, 3,000 images of MNIST and 1,000 digits, few passes: nothing about CIFAR, "
        "convolutions, learned or prototype embeddings, nor about the 100 passes after which the paper compares. Bytes "
        "are those that autograd keeps for one update, not a GPU's memory; prediction draws one chain per image. Chosen "
        "after trials on two seeds, whose validation and in part test accuracy had been seen: the grids of rates, and how "
        "NoProp's readout and the last layer of the paper's backpropagation start (a random start kept both from "
        "learning in so few steps, the baseline more so). In those trials the blocks without denoising and the residual "
        "chain were ahead of NoProp."
    ),
    "paper": "Two of the paper's three data sets, one-hot embeddings only; GPU memory is not measured.",
}


def _arms(scale: str, setting: Setting) -> dict[str, Experiment]:
    data, blocks, options, epochs, steps = setting
    stack = f"no-prop-net(blocks={blocks}, {options})"

    def arm(model: str, rule: str = "backprop", rates: tuple[float, ...] = USUAL, passes: int = epochs) -> Experiment:
        rate = {"smoke": rates[1], "desk": rates[1], "paper": 1e-3}[scale]
        tuned: dict[str, Any] = {"tune": {"optimizer.lr": rates}} if scale == "desk" else {}
        return Experiment(
            data=data,
            model=model,
            rule=rule,
            optimizer=f"adamw(lr={rate}, weight_decay=1e-3, fused=True)",
            schedule=f"cosine-annealing(T_max={passes})",
            epochs=passes,
            evaluate_every=passes,
            count_cost=True,
            **tuned,
        )

    chain, timed, single = (
        f"no-prop-chain(blocks={blocks}, {options})",
        f"no-prop-net(blocks=None, {options})",
        f"no-prop-net(blocks=1, {options})",
    )
    # One block per update does a T-th of the operations.
    longer = blocks * epochs
    return {
        "no-prop": arm(stack, f"no-prop(per_batch={blocks})"),
        "backprop": arm(chain),
        "backprop-logits": arm(chain.replace(")", ", link='logits')")),
        "no-prop-ct": arm(timed, f"no-prop(kind='ct', {steps})", passes=longer),
        "no-prop-fm": arm(timed, f"no-prop(kind='fm', {steps})", passes=longer),
        "one-block": arm(single, f"{CONTROLS}:IndependentBlocks", passes=longer),
        "independent-blocks": arm(stack, f"{CONTROLS}:IndependentBlocks"),
        "random-blocks": arm(stack, f"{CONTROLS}:RandomBlocks", rates=HIGH),
    }


def _expects(data: str) -> list[Expectation]:
    return [
        greater("test_accuracy", f"{data}/no-prop", f"{data}/backprop", margin=-0.005),
        greater("test_accuracy", f"{data}/no-prop", f"{data}/backprop-logits", margin=-0.005),
        ratio("saved_bytes", f"{data}/no-prop", f"{data}/backprop-logits", below=0.5),
        greater("test_accuracy", f"{data}/no-prop-fm", f"{data}/no-prop-ct"),
    ]


def study(scale: str) -> Study:
    """Return the study at a scale.

    Args:
        scale: "smoke", "desk" or "paper".

    Raises:
        InvalidInput: If there is no such scale.
    """
    if scale not in SETTINGS:
        raise InvalidInput(f"noprop has no scale {scale!r}; there are {', '.join(SETTINGS)}")
    settings = SETTINGS[scale]
    return Study(
        claim=CLAIM,
        arms={
            f"{name}/{arm}": experiment
            for name, setting in settings.items()
            for arm, experiment in _arms(scale, setting).items()
        },
        expects=[expectation for name in settings for expectation in _expects(name)],
        sources=SOURCES | OTHER_SOURCES[scale],
        limits=LIMITS[scale],
        seeds=2 if scale == "smoke" else 6,
        covers="the split of the data, the initial weights, the order of the mini-batches and the rules' noise",
    )
