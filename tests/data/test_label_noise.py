"""Label noise: how many labels are wrong, which ones, and what they became."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, truncnorm
from torch import Tensor

from assay.data.label_noise import (
    CIFAR10_TRANSITION,
    asymmetric_noise,
    instance_noise,
    noisy_labels,
    symmetric_noise,
)
from assay.errors import InvalidInput
from assay.lab.experiment import Experiment
from assay.streams import Streams


def _labels(samples: int = 6000, classes: int = 5) -> Tensor:
    return torch.arange(samples) % classes


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.999), st.integers(1, 60), st.integers(2, 6), st.integers(0, 5))
def test_symmetric_noise_is_exact_in_number(rate: float, samples: int, classes: int, seed: int) -> None:
    """Another share of labels would be wrong than asked for, or the clean ones would be lost."""
    clean = _labels(samples, classes)
    noisy = symmetric_noise(clean, rate, classes, generator=_seeded(seed))
    assert int(noisy.corrupted.sum()) == round(rate * samples)
    assert torch.equal(noisy.corrupted, noisy.targets != noisy.clean) and torch.equal(noisy.clean, clean)
    assert torch.equal(clean, _labels(samples, classes)), "the user's labels were changed"


def test_symmetric_noise_is_even_over_the_other_classes() -> None:
    """One wrong class would be likelier than another, or corruption would favour a class."""
    clean = _labels()
    noisy = symmetric_noise(clean, 0.5, 5, generator=_seeded())
    shift = (noisy.targets - clean)[noisy.corrupted] % 5
    assert chisquare(shift.bincount(minlength=5)[1:].numpy()).pvalue > 1e-3
    assert chisquare(clean[noisy.corrupted].bincount(minlength=5).numpy()).pvalue > 1e-3


def test_noise_over_all_classes_leaves_a_share_right() -> None:
    """The papers' convention would be another one: r (1 - 1/K) of the labels are wrong."""
    noisy = symmetric_noise(_labels(), 0.5, 5, others=False, generator=_seeded())
    share, error = 0.4, math.sqrt(0.5 * 0.2 * 0.8 / 6000)
    assert noisy.corrupted.double().mean().item() == pytest.approx(share, abs=4 * error)
    assert chisquare(noisy.targets.bincount(minlength=5).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("transition", [CIFAR10_TRANSITION, None, {0: 7, 7: 0}])
def test_asymmetric_noise_moves_a_share_of_each_class_to_its_partner(transition: dict[int, int] | None) -> None:
    """A class would be corrupted that shouldn't be, or become another one than said."""
    clean = torch.arange(10).repeat_interleave(torch.arange(10, 110, 10))
    noisy = asymmetric_noise(clean, 0.3, 10, transition=transition, generator=_seeded())
    moves = transition if transition is not None else {k: (k + 1) % 10 for k in range(10)}
    for k in range(10):
        given = noisy.targets[clean == k]
        wrong = given[given != k]
        assert len(wrong) == (round(0.3 * len(given)) if k in moves else 0)
        assert (wrong == moves.get(k, k)).all()


def test_instance_noise_has_its_rate_and_follows_the_inputs() -> None:
    """The rate would drift, or the noise would not depend on the sample, as its name says."""
    x = torch.randn(6000, 8, generator=_seeded(1))
    clean = _labels()
    for rate in (0.0, 0.05, 0.4):
        noisy = instance_noise(x, clean, rate, 5, generator=_seeded(2))
        expected = truncnorm.mean(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1) if rate else 0.0
        assert noisy.corrupted.double().mean().item() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 6000))
    # Equal inputs of a class become the same wrong class far more often than chance: here always about as often.
    same = x[:1].expand(3000, 8) * 20
    wrong = instance_noise(same, torch.zeros(3000).long(), 0.4, 5, generator=_seeded(3))
    counts = wrong.targets[wrong.corrupted].bincount(minlength=5)
    assert counts[0] == 0 and counts.max() > 0.9 * counts.sum()


def test_the_same_generator_gives_the_same_noise_and_no_global_one_is_used() -> None:
    """Paired arms would see different labels, or noise would shift the user's own draws."""
    state = torch.get_rng_state()
    x, clean = torch.randn(50, 3, generator=_seeded()), _labels(50)
    for make in (
        lambda g: symmetric_noise(clean, 0.4, 5, generator=g),
        lambda g: asymmetric_noise(clean, 0.4, 5, generator=g),
        lambda g: instance_noise(x, clean, 0.4, 5, generator=g),
    ):
        assert torch.equal(make(_seeded(4)).targets, make(_seeded(4)).targets)
        assert not torch.equal(make(_seeded(4)).targets, make(_seeded(5)).targets)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "instance"])
def test_a_noisy_data_set_is_the_clean_one_with_other_labels(kind: str) -> None:
    """Test labels would be noisy, or the noise would move the split."""
    from assay.data import blobs

    base, noisy = (
        blobs(classes=4, generator=_seeded(6)),
        noisy_labels("blobs(classes=4)", kind, 0.3, generator=_seeded(6)),
    )
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(noisy, part).inputs, getattr(base, part).inputs)
    assert torch.equal(noisy.test.targets, base.test.targets)
    assert torch.equal(noisy.clean, base.train.targets)
    assert torch.equal(noisy.validation_clean, base.validation.targets)
    assert torch.equal(noisy.corrupted, noisy.train.targets != base.train.targets)
    for split, clean in ((noisy.train, noisy.clean), (noisy.validation, noisy.validation_clean)):
        assert (split.targets != clean).double().mean().item() == pytest.approx(0.3, abs=0.1)
    spared = noisy_labels("blobs(classes=4)", kind, 0.3, clean_validation=True, generator=_seeded(6))
    assert torch.equal(spared.validation.targets, base.validation.targets) and bool(spared.corrupted.any())
    assert torch.equal(spared.to("cpu").clean, spared.clean)


def test_an_experiment_takes_it_by_name() -> None:
    """The command line could not train on noisy labels; the network's own fit must be to the noisy ones."""
    experiment = Experiment(
        data="noisy-labels(data='blobs(classes=3, separation=9.0)', rate=0.4)", model="mlp(width=16)", epochs=8
    )
    metrics = experiment(Streams("test", 0)).metrics
    assert metrics["test_accuracy"] > 0.8 > 0.75 > metrics["train_accuracy"]


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1, math.nan])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "instance"])
def test_a_rate_of_one_or_more_is_an_error(kind: str, rate: float) -> None:
    """Labels that say nothing at all would be trained on."""
    with pytest.raises(InvalidInput, match="noise rate must be 0 or larger and below 1"):
        noisy_labels("blobs", kind, rate)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: symmetric_noise(torch.tensor([0, 5]), 0.1, 5), "0..4"),
        (lambda: symmetric_noise(torch.tensor([0.0]), 0.1, 5), "int64"),
        (lambda: symmetric_noise(torch.tensor([0]), 0.1, 1), "at least 2 classes"),
        (lambda: asymmetric_noise(torch.tensor([0]), 0.1, 5, transition={0: 5}), "transition"),
        (lambda: instance_noise(torch.zeros(2, 3), torch.tensor([0]), 0.1, 5), "one per label"),
        (lambda: instance_noise(torch.zeros(1, 3), torch.tensor([0]), 0.1, 5, std=0.0), "std"),
        (lambda: noisy_labels("blobs", "pair"), "kind must be one of"),
        (lambda: noisy_labels("diabetes"), "needs classes"),
    ],
)
def test_bad_input_is_one_clear_error(call, said) -> None:
    """A typing error would become noise of another kind."""
    with pytest.raises(InvalidInput, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
