"""k-nearest-neighbour accuracy against scikit-learn's classifier, brute force with ties, and its undefined cases."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from assay.probes import knn_accuracy
from assay.probes.knn_accuracy import KNNAccuracy, neighbour_votes


def sample(n: int = 60, d: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three noisy classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, d, generator=generator) + 1.5 * torch.eye(d)[y], y


@pytest.mark.parametrize("k", [1, 4, 5])
def test_leave_one_out_is_scikit_learns(k: int) -> None:
    """The accuracy would be another classifier's, or count a sample as its own neighbour."""
    h, y = sample()
    classifier = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
    predicted = torch.from_numpy(cross_val_predict(classifier, h.numpy(), y.numpy(), cv=LeaveOneOut()))
    probe = KNNAccuracy(k=k, num_classes=3)
    probe.update(h[:20], y[:20])
    probe.update(h[20:], y[20:])
    assert probe.compute()["knn_accuracy"] == pytest.approx((predicted == y).double().mean().item(), abs=1e-12)


def test_votes_of_other_samples_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test samples would be compared with the wrong keys, or a block's rows be lost."""
    monkeypatch.setattr(knn_accuracy, "BLOCK", 100)
    (h, y), (q, _) = sample(), sample(33, seed=1)
    expected = KNeighborsClassifier(7, metric="cosine", algorithm="brute").fit(h.numpy(), y.numpy())
    votes = neighbour_votes(q, h, y, 7, 3)
    assert torch.allclose(votes / 7, torch.from_numpy(expected.predict_proba(q.numpy())))


def test_tied_keys_share_the_last_places() -> None:
    """The result would depend on the order of duplicates: it must be the mean over all ways to pick among them."""
    angles = torch.tensor([0.1, 0.5, 0.5, 0.5, 0.9])
    keys, y = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 1, 1, 2, 0])
    votes = neighbour_votes(torch.tensor([[1.0, 0.0]]), keys, y, 3, 3)
    picks = list(combinations([1, 1, 2], 2))
    mean = [1.0, *(sum(pick.count(c) for pick in picks) / len(picks) for c in (1, 2))]
    assert votes[0].tolist() == pytest.approx(mean)


def test_alone_counts_samples_without_a_neighbour_of_their_class() -> None:
    """The share of queries that have nobody to go to would be wrong."""
    h, y = sample()
    probe = KNNAccuracy(k=2, num_classes=3)
    probe.update(h, y)
    unit = torch.nn.functional.normalize(h.double(), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2).topk(2).indices
    assert probe.compute()["knn_alone"] == pytest.approx((y[near] != y[:, None]).all(dim=1).double().mean().item())


def test_undefined_values_say_why() -> None:
    """Too few samples or NaN would give a number."""
    for h, reason in ((torch.ones(3, 2), "3 samples"), (torch.full((9, 2), torch.nan), "NaN")):
        probe = KNNAccuracy(k=3, num_classes=1)
        probe.update(h, torch.zeros(len(h), dtype=torch.long))
        assert all(math.isnan(value) for value in probe.compute().values())
        assert reason in probe.skipped["knn_accuracy"]


def test_bad_input_is_refused() -> None:
    """A k above the number of neighbours, or of 0, would pass."""
    h, y = sample(5)
    with pytest.raises(ValueError, match="number of neighbours, 4; got 5"):
        neighbour_votes(h, h, y, 5, 3, leave_one_out=True)
    with pytest.raises(ValueError, match="do not fit keys"):
        neighbour_votes(h[:, :2], h, y, 2, 3)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        KNNAccuracy(k=0)
    with pytest.raises(ValueError, match="no samples"):
        KNNAccuracy().compute()
