"""What the study of bias-variance adds of its own: members with their own data and order, fair arms."""

from __future__ import annotations

import pytest
import torch

from assay.data.dataset import Split
from assay.models.ensemble import Ensemble
from assay.papers.bias_variance import study as module
from assay.papers.bias_variance.study import study, train
from assay.streams import Streams


def arguments(arm, scale="smoke"):
    """The arguments of an arm."""
    found = dict(study(scale).arms[arm].describe())
    del found["function"]
    return found


def test_a_trial_repeats_and_keeps_the_identity():
    """Seeds would not repeat, or the numbers not be one decomposition."""
    before = torch.get_rng_state()
    first, second = (train(Streams("t", 0), **arguments("wide")) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.metrics == second.metrics and first.series == second.series
    m = first.metrics
    assert m["bias2"] - m["variance"] == pytest.approx(m["uncertainty"] - 2 * m["calibration_gap"], abs=1e-12)
    assert first.series["bias_variance_slope"].values[-1] == m["bias_variance_slope"]


def test_bootstrap_members_keep_their_samples(monkeypatch):
    """A member would see all data over the epochs after all, or a plain member miss some."""
    seen = {True: [], False: []}
    for bootstrap, found in seen.items():
        monkeypatch.setattr(module, "_epoch", lambda e, split, orders, *rest, found=found: found.append(orders))
        train(Streams("t", 0), **{**arguments("narrow"), "bootstrap": bootstrap})
    assert all(torch.equal(orders.sort(1).values, torch.arange(300).expand(4, -1)) for orders in seen[False])
    first, *others = (orders.sort(1).values for orders in seen[True])
    assert all(torch.equal(first, other) for other in others) and not torch.equal(first[0], first[1])
    assert not torch.equal(seen[True][0], seen[True][1])


def test_one_epoch_gives_each_member_its_own_batches():
    """Members would be trained on each other's samples, or at another rate than alone."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    split, orders = Split(x, torch.arange(6) % 2), torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    ensemble = Ensemble(lambda generator: torch.nn.Linear(3, 2), 2)
    single = ensemble.member(1)
    module._epoch(ensemble, split, orders, torch.optim.SGD(ensemble.parameters(), lr=0.5), 3)
    optimizer = torch.optim.SGD(single.parameters(), lr=0.5)
    for chosen in orders[1].split(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(single(split.inputs[chosen]), split.targets[chosen]).backward()
        optimizer.step()
    torch.testing.assert_close(ensemble.member(1).weight, single.weight)


def test_bootstrap_is_all_that_differs():
    """The bootstrap arms would differ in more than their data, or a hyper-parameter lack its source."""
    for scale in ("smoke", "desk", "paper"):
        assert study(scale).unsourced() == []
        for name in ("narrow", "wide"):
            plain, other = arguments(name, scale), arguments(f"{name}-bootstrap", scale)
            assert (plain.pop("bootstrap"), other.pop("bootstrap")) == (False, True) and plain == other


def test_divergence_is_reported():
    """An ensemble that diverged would be recorded as a line."""
    with pytest.raises(FloatingPointError, match="members"):
        train(Streams("t", 0), **{**arguments("narrow"), "optimizer": "sgd(lr=1e30)"})
