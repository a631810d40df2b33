"""The leave-one-out k-nearest-neighbour loss against its definition in Python, NCA, limits and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.losses.leave_one_out import LeaveOneOutKNNLoss, leave_one_out_knn_loss
from assay.nn.feature_bank import FeatureBank


def sample(n: int = 50, d: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features in float64, labels, ids."""
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)
    return z, torch.randint(classes, (n,), generator=generator), torch.arange(n)


def by_definition(z: Tensor, y: Tensor, k: int, tau: float, on_empty: str) -> list[float]:
    """One sample at a time: sort all others, share of the own class's weights among the first k."""
    losses = []
    for i in range(len(z)):
        s = [float(z[i] @ z[j]) for j in range(len(z))]
        others = sorted((j for j in range(len(z)) if j != i), key=lambda j: -s[j])
        chosen, own = others[:k], [j for j in others if y[j] == y[i]]
        if own and on_empty == "nearest" and own[0] not in chosen:
            chosen = [*chosen, own[0]]
        share = sum(math.exp(s[j] / tau) for j in chosen if y[j] == y[i])
        losses.append(-math.log(share / sum(math.exp(s[j] / tau) for j in chosen)) if share else 0.0)
    return losses


@pytest.mark.parametrize("on_empty", ["nearest", "skip"])
@pytest.mark.parametrize("k", [1, 3, 10, 49])
def test_equals_the_definition(k: int, on_empty: str) -> None:
    """The loss would not be -log of the own class's share among the k nearest others."""
    z, y, ids = sample()
    y[7] = 99  # a class with a single sample
    found = leave_one_out_knn_loss(z, y, z, y, k, query_ids=ids, key_ids=ids, on_empty=on_empty, reduction="none")
    expected = torch.tensor(by_definition(z, y, k, 0.1, on_empty), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert found[7] == 0
    assert k > 3 or (expected == 0).sum() > 1 or on_empty == "nearest"  # some queries are empty


def test_all_neighbours_are_nca_with_gradients_on_both_sides() -> None:
    """With k = all others the loss would not be the softmax form of neighbourhood component analysis."""
    z, y, _ = sample(30)
    first, second = (z.clone().requires_grad_() for _ in range(2))
    LeaveOneOutKNNLoss(k=29, temperature=0.3)(first, y).backward()
    unit = F.normalize(second, dim=1)
    p = (unit @ unit.T / 0.3).fill_diagonal_(-torch.inf).softmax(dim=1)
    (-((p * (y[:, None] == y)).sum(dim=1)).log()).mean().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("on_empty", ["nearest", "skip"])
def test_gradients_are_finite_differences(on_empty: str) -> None:
    """The derivative by queries or keys, with the neighbours as they are, would be wrong."""
    z, y, ids = sample(12, 3, 3)
    gradient = torch.autograd.gradcheck(
        lambda a, b: leave_one_out_knn_loss(a, y, b, y, 4, query_ids=ids, key_ids=ids, on_empty=on_empty),
        (z.clone().requires_grad_(), z.clone().requires_grad_()),
    )
    assert gradient


def test_far_samples_get_no_gradient() -> None:
    """The loss would pull together samples that are not neighbours, which is what it must not do."""
    z, y, ids = sample()
    keys = z.clone().requires_grad_()
    leave_one_out_knn_loss(z[:1], y[:1], keys, y, 5, query_ids=ids[:1], key_ids=ids).backward()
    near = (z[0] @ z.T).index_fill(0, ids[:1], -2).topk(5).indices
    touched = keys.grad.abs().sum(dim=1).nonzero()[:, 0]  # type: ignore[union-attr]
    assert set(touched.tolist()) <= set(near.tolist())


def test_own_slot_does_not_count() -> None:
    """A stale copy of the sample itself would be its nearest neighbour and make the loss trivial."""
    z, y, ids = sample()
    bank = FeatureBank(50, 6).double()
    bank.update(z, y, ids)
    criterion = LeaveOneOutKNNLoss(k=5, bank=bank, reduction="none")
    before = criterion(z, y, ids)
    bank.keys[3] = F.normalize(z[4] + z[5], dim=0)
    assert criterion(z, y, ids)[3] == before[3]
    queue = FeatureBank(60, 6, mode="queue").double()  # ten samples are there twice
    for part in (ids, ids[:10]):
        queue.update(z[part], y[part], part)
    twice = LeaveOneOutKNNLoss(k=5, bank=queue, reduction="none")(z[:10], y[:10], ids[:10])
    unseen = LeaveOneOutKNNLoss(k=5, bank=bank, reduction="none")(z[:10], y[:10])
    assert twice.isfinite().all() and not torch.allclose(twice, unseen)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 15), on_empty=st.sampled_from(["nearest", "skip"]))
@settings(max_examples=25, deadline=None)
def test_rotation_and_renaming_change_nothing(seed: int, k: int, on_empty: str) -> None:
    """The loss would depend on more than angles and on which labels are equal."""
    z, y, ids = sample(20, 4, 3, seed)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    a, b = (
        leave_one_out_knn_loss(u, v, u, v, k, query_ids=ids, key_ids=ids, on_empty=on_empty, reduction="none")
        for u, v in ((z, y), (z @ rotation, 10 - 3 * y))
    )
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    assert (a >= 0).all()


def test_one_class_costs_nothing() -> None:
    """A single class would be pulled together, or NaN come out of log(0 / 0)."""
    z, y, _ = sample()
    z.requires_grad_()
    loss = LeaveOneOutKNNLoss(k=9)(z, torch.zeros_like(y))
    loss.backward()
    assert loss == 0 and not z.grad.any()  # type: ignore[union-attr]


def test_only_wrong_neighbours_leave_the_nearest_of_the_class_its_share() -> None:
    """With on_empty="nearest" the loss would not be -log of that one's share among k + 1."""
    angles = torch.tensor([0.0, 0.1, -0.1, 0.2, 1.5, 2.0], dtype=torch.float64)
    z, y = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 1, 1, 1, 0, 0])
    found = leave_one_out_knn_loss(z[:1], y[:1], z[1:], y[1:], 3, temperature=1.0)
    weights = (z[0] @ z[1:5].T).exp()
    assert found.item() == pytest.approx(-math.log(weights[3] / weights.sum()), rel=1e-12)


def test_small_temperature_asks_the_nearest_neighbour_only() -> None:
    """The limit tau -> 0 would not be the error of the nearest neighbour."""
    z, y, ids = sample()
    found = leave_one_out_knn_loss(z, y, z, y, 5, temperature=1e-4, query_ids=ids, key_ids=ids, reduction="none")
    nearest = (z @ z.T).fill_diagonal_(-2).argmax(dim=1)
    assert torch.equal(found < 1e-3, y[nearest] == y)


def test_keeps_its_digits_near_a_fit() -> None:
    """In float32 the loss of a well separated class would round to 0, and its gradient with it."""
    z, y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    found = leave_one_out_knn_loss(z[:1], y[:1], z[1:], y[1:], 2, temperature=0.1)
    assert found.item() == pytest.approx(math.exp(-20), rel=1e-5)


def test_two_views_of_a_sample_are_no_neighbours() -> None:
    """Within a batch the other augmentation of the same image would be an easy positive."""
    z, y, ids = sample(20)
    alone = LeaveOneOutKNNLoss(k=3, reduction="none")(torch.cat([z, z]), torch.cat([y, y]), torch.cat([ids, ids]))
    expected = LeaveOneOutKNNLoss(k=3, reduction="none", bank=None)
    bank = FeatureBank(40, 6, mode="queue").double()
    bank.update(torch.cat([z, z]), torch.cat([y, y]), torch.cat([ids, ids]))
    expected.bank = bank
    torch.testing.assert_close(alone[:20], expected(z, y, ids), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"on_empty": "drop"}, "on_empty must be one of nearest, skip; got 'drop'"),
        ({"reduction": "median"}, "reduction must be"),
        ({"k": 5, "bank": FeatureBank(4, 2)}, "k = 5 neighbours from a bank of 4"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    """A wrong option would train with nonsense."""
    with pytest.raises(ValueError, match=message):
        LeaveOneOutKNNLoss(**options)  # type: ignore[arg-type]


def test_bad_batches_are_refused() -> None:
    """A batch too small for k, an empty bank or misplaced labels would go unnoticed."""
    z, y, ids = sample(6, 2)
    with pytest.raises(ValueError, match="only 5 neighbours"):
        LeaveOneOutKNNLoss(k=6)(z, y)
    with pytest.raises(ValueError, match="fill the bank first"):
        LeaveOneOutKNNLoss(k=1, bank=FeatureBank(9, 2))(z, y, ids)
    with pytest.raises(ValueError, match=r"targets must have shape \(6,\)"):
        LeaveOneOutKNNLoss(k=1)(z, y[:4])
    with pytest.raises(ValueError, match=r"targets must be class indices"):
        LeaveOneOutKNNLoss(k=1)(z, y.double())
    with pytest.raises(ValueError, match=r"features must be floats \(B, D\)"):
        LeaveOneOutKNNLoss(k=1)(z[:, 0], y)
