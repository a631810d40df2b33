"""What the study of useful adds of its own: the toy against its differential equations, fair budgets, patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from assay.data.dataset import Split
from assay.papers.useful.study import study
from assay.papers.useful.toy import Toy, descend, early_clusters, outputs, patches
from assay.papers.useful.training import random_indices, train, with_patch
from assay.streams import Streams

TINY = {
    "data": "digits(train=60, validation=10, test=60)",
    "model": "mlp(width=8, depth=1)",
    "epochs": 2,
    "early_epochs": 1,
    "batch_size": 16,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "rho": 0.0,
    "equal_samples": True,
    "patched": 0.0,
}


def _toy(noise: float = 0.125) -> Toy:
    return patches(400, 4, 12, 0.6, 1.0, 0.75, noise, torch.Generator().manual_seed(0))


def test_examples_are_what_the_theory_draws() -> None:
    """A feature would be missing or of the wrong sign or size, or noise would leak into the features."""
    data = _toy()
    along = data.x @ data.features.T
    torch.testing.assert_close(data.features @ data.features.T, torch.eye(2))
    torch.testing.assert_close(along[:, 0, 0], (0.6 * data.y).float())
    torch.testing.assert_close(along[data.fast, 1, 1], data.y[data.fast].float())
    for patch, feature in ((0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)):
        assert along[:, patch, feature].abs().max() < 1e-5
    assert along[~data.fast, 1].abs().max() < 1e-5
    assert data.fast.float().mean() == pytest.approx(0.75, abs=0.06)
    noise = data.x[:, 2:].std() * (12 / 10) ** 0.5  # two of twelve dimensions hold no noise
    assert noise == pytest.approx(0.125, abs=0.003)


def test_outputs_are_sums_of_cubes() -> None:
    """Patches or neurons would be mixed up."""
    generator = torch.Generator().manual_seed(1)
    w, x = torch.randn(3, 5, generator=generator), torch.randn(4, 2, 5, generator=generator)
    expected = [sum(float(w[j] @ x[i, p]) ** 3 for j in range(3) for p in range(2)) for i in range(4)]
    torch.testing.assert_close(outputs(w, x), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_without_noise_descent_follows_two_equations_per_neuron() -> None:
    """The dynamics would not be u' = 3 beta^3 u^2 E[s] that the theory studies, for either feature."""
    data = _toy(noise=0.0)
    start = 0.3 * torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    lr, steps = 0.005, 600
    share = data.fast.double().mean().item()

    def slope(_: float, u: np.ndarray) -> np.ndarray:
        slow, fast = u.reshape(2, 3)
        both = 0.6**3 * (slow**3).sum() + (fast**3).sum()
        with_fast = share / (1 + np.exp(both))
        without = (1 - share) / (1 + np.exp(0.6**3 * (slow**3).sum()))
        return np.concatenate([3 * 0.6**3 * slow**2 * (with_fast + without), 3 * fast**2 * with_fast])

    first = (data.features @ start.T).double().numpy().ravel()
    end = solve_ivp(slope, (0, lr * steps), first, rtol=1e-10, atol=1e-12).y[:, -1].reshape(2, 3)
    weights, learned = descend(start, data, torch.arange(400), lr, 0.0, steps)
    found = (data.features @ weights.T).numpy()
    assert found[1].max() > 1.5 * first[3:].max(), "the fast feature has not been learned"
    np.testing.assert_allclose(found, end, rtol=5e-3, atol=5e-4)  # Euler's error is of order lr
    np.testing.assert_allclose(learned[-1], end.max(axis=1), rtol=5e-3)
    assert len(learned) == steps + 1


def test_descent_stops_where_the_fast_feature_is_learned() -> None:
    """Optimizers would be compared at different progress."""
    data, start = _toy(), 0.2 * torch.randn(5, 12, generator=torch.Generator().manual_seed(3))
    _, learned = descend(start, data, torch.arange(400), 0.1, 0.1, 1000, until=1.0)
    assert learned[-1, 1] >= 1.0 > learned[-2, 1]


def test_separation_counts_examples() -> None:
    """Clusters would be scored against the wrong feature: with weights along v_e they are exact."""
    data = _toy()
    upsampled, separation = early_clusters(2 * data.features[1:], data, seed=0)
    assert separation == 1.0 and sorted(upsampled.tolist()) == (~data.fast).nonzero().squeeze(1).tolist()


def test_controls_see_as_many_examples_as_useful() -> None:
    """USEFUL would be given more training than what it is compared with, or SAM's second gradients not be counted."""
    runs = {copies: train(Streams("t", 0), copies=copies, **TINY) for copies in ("none", "random", "useful")}
    samples = {run.resources["samples"] for run in runs.values()}
    assert len(samples) == 1
    (total,) = samples
    share = runs["useful"].metrics["upsampled_share"]
    assert total == pytest.approx(2 * 60 * (1 + share) + 60) and 0 < share < 1
    sam = train(Streams("t", 0), copies="none", **{**TINY, "rho": 0.1, "equal_samples": False})
    assert sam.resources == {"samples": 120.0, "gradients": 240.0}


def test_random_copies_are_balanced_as_usefuls() -> None:
    """The control would differ from USEFUL in the classes' frequencies, too."""
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    useful = torch.tensor([0, 1, 2, 5])
    drawn = random_indices(useful, targets, torch.Generator().manual_seed(0))
    assert targets[drawn].tolist() == [0, 0, 0, 1] and len(drawn.unique()) == 4
    assert random_indices(useful[:0], targets, torch.Generator()).tolist() == []


def test_the_patch_says_the_class() -> None:
    """The patch would give away another class, touch other images, or leave traces of the digit in its place."""
    images = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    split = Split(images.clone(), torch.tensor([3, 0, 5, 4]))
    patched = with_patch(split, torch.tensor([True, False, True, True]), 7.0, 6)
    assert torch.equal(split.inputs, images) and torch.equal(patched.inputs[1], images[1])
    low = float(images.min())
    for i, (row, column) in {0: (0, 3), 2: (1, 1), 3: (1, 0)}.items():
        expected = images[i].clone()
        expected[:, 0], expected[:, 1, :2] = low, low
        expected[:, row, column] = 7.0
        assert torch.equal(patched.inputs[i], expected)


def test_accuracies_are_weighted_by_the_patchs_share() -> None:
    """The accuracy on data of the training distribution would be that of images without, or all with, the patch."""
    metrics = train(Streams("t", 0), copies="useful", **{**TINY, "patched": 0.75}).metrics
    mixed = 0.75 * metrics["accuracy_with_patch"] + 0.25 * metrics["accuracy_without_patch"]
    assert metrics["test_accuracy"] == pytest.approx(mixed) and 0 <= metrics["found_without_patch"] <= 1


def test_arms_that_compete_differ_in_one_thing() -> None:
    """A learning rate, a radius or a data set would decide."""
    for scale in ("smoke", "desk", "paper"):
        arms = study(scale).arms
        for part, names, varied in (
            ("toy", ("gd", "sam-0.05", "sam-0.1"), "rho"),
            ("toy", ("gd", "useful"), "upsample"),
            ("images", ("sgd", "random", "useful"), "copies"),
            ("images", ("sam", "sam-useful"), "copies"),
            ("patch", ("sgd", "random", "useful"), "copies"),
        ):
            settings = [dict(arms[f"{part}/{name}"].arguments) for name in names]
            values = [setting.pop(varied) for setting in settings]
            assert len(set(values)) == len(values) and all(setting == settings[0] for setting in settings)


def test_unknown_copies_are_refused() -> None:
    """A misspelt arm would silently train on the plain data."""
    with pytest.raises(ValueError, match="none, useful, random; got 'all'"):
        train(Streams("t", 0), copies="all", **TINY)
