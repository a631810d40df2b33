"""What the study of lazy-neuron adds of its own: labels, corruption, the training function, fair arms."""

from __future__ import annotations

import pytest
import torch

from assay.data.tabular import digits
from assay.papers.lazy_neuron.study import corrupted, study, train, with_random_labels
from assay.streams import Streams


def arguments(arm, scale="smoke"):
    """The arguments of an arm."""
    found = dict(study(scale).arms[arm].describe())
    del found["function"]
    return found


def test_random_labels_replace_training_targets_only():
    """The test data would be spoiled, or labels still say something."""
    data = digits(train=900, generator=torch.Generator().manual_seed(0))
    found = with_random_labels(data, torch.Generator().manual_seed(1))
    assert found.test is data.test and torch.equal(found.train.inputs, data.train.inputs)
    agreement = (found.train.targets == data.train.targets).double().mean().item()
    assert agreement == pytest.approx(0.1, abs=0.05) and found.train.targets.unique().numel() == 10


def test_a_tenth_of_the_characters_is_corrupted():
    """The corruption would be another than said."""
    tokens = torch.zeros(100, 100, dtype=torch.int64)
    noisy = corrupted(tokens, 50, torch.Generator().manual_seed(0))
    assert (noisy != tokens).double().mean().item() == pytest.approx(0.1 * 49 / 50, abs=0.01)


def test_a_trial_measures_what_it_says_and_repeats():
    """Seeds would not repeat, the start not be half dense, or series and metrics disagree."""
    before = torch.get_rng_state()
    first, second = (train(Streams("t", 0), **arguments("wide")) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.metrics == second.metrics and first.series == second.series
    m, series = first.metrics, first.series["activation_density"]
    assert m["density_start"] == pytest.approx(0.5, abs=0.1) and series.steps[0] == 0.0
    assert m["density_end"] == series.values[-1] and series.steps[-1] == 6.0
    assert m["density_change"] == m["density_end"] - m["density_start"]
    assert 0 < m["flops_saved"] < 0.5 and m["corruption_loss"] != 0


def test_top_k_starts_from_the_dense_networks_weights():
    """The comparison would not be paired, or k not be enforced."""
    dense, sparse = (train(Streams("t", 0), **{**arguments(arm), "steps": 1}) for arm in ("middle", "middle-top-k"))
    assert sparse.metrics["density_end"] <= 2 / 16 < dense.metrics["density_end"]
    ours, theirs = (arguments(arm, "desk") for arm in ("middle-top-k", "middle"))
    assert ours.pop("model").replace("top-k(k=16)", "relu") == theirs.pop("model") and ours == theirs


def test_arms_differ_in_one_thing_each():
    """A width, a label or an optimizer would win by another setting."""
    for scale in ("smoke", "desk", "paper"):
        assert study(scale).unsourced() == []
        for group, differs in (
            (("narrow", "middle", "wide"), ("model",)),
            (("mlp-sgd-true", "mlp-sgd-random"), ("labels",)),
        ):
            rest = [{k: v for k, v in arguments(arm, scale).items() if k not in differs} for arm in group]
            assert all(each == rest[0] for each in rest)


def test_divergence_is_reported():
    """A run that diverged would be recorded as a density."""
    with pytest.raises(FloatingPointError, match="step"):
        train(Streams("t", 0), **{**arguments("mlp-sgd-true"), "optimizer": "sgd(lr=1e30)"})
