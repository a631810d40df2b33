"""USEFUL's clusters against brute force and its invariants; its sampler against what an epoch must hold."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from assay.data.useful import UsefulSampler, early_outputs, useful_indices


def _examples(seed: int, n: int = 40, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, classes, generator=generator)
    return outputs, torch.rand(n, generator=generator), torch.randint(0, classes, (n,), generator=generator)


def _best_split(outputs: Tensor) -> tuple[float, set[frozenset[int]]]:
    """Return the least sum of squares over all ways to cut a few points in two, and that cut."""

    def spread(chosen: tuple[int, ...]) -> float:
        points = outputs[list(chosen)]
        return float((points - points.mean(dim=0)).square().sum())

    everything = range(len(outputs))
    cuts = [c for size in range(1, len(outputs)) for c in itertools.combinations(everything, size)]
    rests = [tuple(i for i in everything if i not in cut) for cut in cuts]
    value, cut, rest = min((spread(c) + spread(r), c, r) for c, r in zip(cuts, rests, strict=True))
    return value, {frozenset(cut), frozenset(rest)}


@pytest.mark.parametrize("seed", range(4))
def test_a_class_is_cut_where_brute_force_cuts_it(seed: int) -> None:
    """The clusters would not be those of 2-means on the outputs, or the half of lower loss would be chosen."""
    outputs, losses, _ = _examples(seed, n=9)
    upsampled, halves = useful_indices(outputs, losses, torch.zeros(9, dtype=torch.long))
    rest = frozenset(range(9)) - set(upsampled.tolist())
    assert {frozenset(upsampled.tolist()), rest} == _best_split(outputs.double())[1]
    assert losses[upsampled].mean() > losses[sorted(rest)].mean()
    assert halves.nonzero().squeeze(1).tolist() == upsampled.tolist()


@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50))
@settings(max_examples=15, deadline=None)
def test_each_class_has_its_own_harder_half(seed: int, shift: float) -> None:
    """An example would come twice, a class be forgotten, its easier half be chosen, or a common shift matter."""
    outputs, losses, targets = _examples(seed)
    upsampled, _ = useful_indices(outputs, losses, targets)
    assert len(upsampled.unique()) == len(upsampled)
    chosen = torch.zeros(40, dtype=torch.bool).index_fill_(0, upsampled, True)
    for label in range(3):
        own = targets == label
        if own.sum() >= 2:
            assert (own & chosen).any() and (own & ~chosen).any()
            assert losses[own & chosen].mean() >= losses[own & ~chosen].mean()
    assert useful_indices(outputs.double() + shift, losses, targets)[0].tolist() == upsampled.tolist()


def test_classes_do_not_see_each_other() -> None:
    """Clusters would be of all examples together instead of class by class."""
    outputs, losses, targets = _examples(3)
    whole = useful_indices(outputs, losses, targets)[1]
    for label in range(3):
        own = targets == label
        alone = useful_indices(outputs[own], losses[own], targets[own])[1]
        assert torch.equal(whole[own], alone)


def test_clusters_by_output_and_not_by_loss() -> None:
    """The examples of highest loss would be taken, which is another method."""
    outputs = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1]])
    losses = torch.tensor([0.1, 3.0, 0.1, 0.2, 0.3])
    assert useful_indices(outputs, losses, torch.zeros(5, dtype=torch.long))[0].tolist() == [0, 1, 2]


def test_a_class_that_cannot_be_split_is_left_alone() -> None:
    """A collapsed class, or one of a single example, would be upsampled whole or raise inside scikit-learn."""
    outputs = torch.tensor([[1.0], [1.0], [7.0], [2.0], [3.0], [9.0]])
    targets = torch.tensor([0, 0, 1, 2, 2, 2])
    with pytest.warns(UserWarning, match="class 0, 1: nothing upsampled"):
        upsampled, _ = useful_indices(outputs, torch.tensor([1.0, 2.0, 3.0, 0.1, 0.1, 4.0]), targets)
    assert upsampled.tolist() == [5]


@pytest.mark.parametrize(
    ("outputs", "losses", "targets", "message"),
    [
        (torch.zeros(3), torch.zeros(3), torch.zeros(3).long(), r"outputs \(n, K\).*got \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(2), torch.zeros(3).long(), r"losses \(n,\).*\(2,\)"),
        (torch.zeros(4, 2), torch.zeros(3), torch.zeros(3).long(), r"got \(4, 2\)"),
        (torch.zeros(0, 2), torch.zeros(0), torch.zeros(0).long(), "at least one example"),
        (torch.zeros(3, 2), torch.zeros(3), torch.zeros(3), "integer class labels"),
        (torch.full((3, 2), torch.nan), torch.zeros(3), torch.zeros(3).long(), "outputs contain 6 NaN"),
        (torch.zeros(3, 2), torch.tensor([0.0, torch.inf, 0.0]), torch.zeros(3).long(), "losses contain 1 NaN"),
    ],
)
def test_refuses_what_it_cannot_cluster(outputs: Tensor, losses: Tensor, targets: Tensor, message: str) -> None:
    """Wrong shapes would broadcast, and NaN reach scikit-learn."""
    with pytest.raises(ValueError, match=message):
        useful_indices(outputs, losses, targets)


def test_early_outputs_leave_no_trace_and_no_noise() -> None:
    """Dropout would blur the clusters, running statistics move, or a frozen module's mode be lost."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = torch.randn(10, 4), torch.arange(10) % 3
    scores, losses, targets = early_outputs(model, DataLoader(TensorDataset(x, y), batch_size=4))
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    expected = model.eval()(x)
    torch.testing.assert_close(scores, expected.detach())
    torch.testing.assert_close(losses, F.cross_entropy(expected, y, reduction="none").detach())
    assert torch.equal(targets, y) and not scores.requires_grad
    with pytest.raises(ValueError, match="no batch"):
        early_outputs(model, [])


@given(n=st.integers(1, 30), data=st.data())
@settings(max_examples=20, deadline=None)
def test_an_epoch_holds_every_example_once_and_the_upsampled_twice(n: int, data: st.DataObject) -> None:
    """An example would be lost or come three times."""
    upsampled = data.draw(st.sets(st.integers(0, n - 1)))
    sampler = UsefulSampler(n, torch.tensor(sorted(upsampled)), torch.Generator().manual_seed(1))
    for _ in range(2):
        assert sorted(sampler) == sorted([*range(n), *upsampled])
    assert len(sampler) == n + len(upsampled)


def test_nothing_upsampled_is_torchs_own_shuffling() -> None:
    """With an empty U, training would differ from training on the data as they are."""
    own = UsefulSampler(20, torch.tensor([]), torch.Generator().manual_seed(5))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5)).tolist()
    assert list(own) == order == list(RandomSampler(range(20), generator=torch.Generator().manual_seed(5)))
    assert list(own) != order


def test_feeds_a_loader_without_the_global_generator() -> None:
    """Two loaders made alike would give different batches, or the second epoch repeat the first."""
    data, upsampled = TensorDataset(torch.arange(10)), torch.tensor([3, 4])

    def epochs() -> list[list[int]]:
        loader = DataLoader(data, batch_size=5, sampler=UsefulSampler(10, upsampled))
        return [torch.cat([x for (x,) in loader]).tolist() for _ in range(2)]

    first = epochs()
    assert first == epochs() and first[0] != first[1]
    assert sorted(first[0]) == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("upsampled", "message"), [([4], "from 0 to 3; got 4 to 4"), ([-1], "from 0 to 3"), ([2, 2], "at most twice")]
)
def test_sampler_refuses_wrong_indices(upsampled: list[int], message: str) -> None:
    """An index of another data set would fail in a worker or, negative, silently mean another example."""
    with pytest.raises(ValueError, match=message):
        UsefulSampler(4, torch.tensor(upsampled))
