"""SOP: its value, whom its gradients reach, how its noise variables grow, and that they find wrong labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.data import IndexedDataset, digits, symmetric_noise
from assay.errors import InvalidInput
from assay.losses.sop import SOPLoss, sop_loss
from assay.probes.noise_found import noise_detection

EPS = 1e-4


def _batch(samples: int = 6, classes: int = 4, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (samples,), generator=generator)
    u, v = (torch.rand(samples, k, generator=generator, dtype=torch.float64) for k in (1, classes))
    return z.requires_grad_(), targets, u.requires_grad_(), v.requires_grad_()


def _by_hand(z: list[float], target: int, u: float, v: list[float]) -> float:
    """The loss of one sample, entry by entry."""
    K = len(z)
    p = [math.exp(a) / sum(map(math.exp, z)) for a in z]
    s = [u**2 if k == target else -(v[k] ** 2) for k in range(K)]
    w = [max(p[k] + s[k], EPS) for k in range(K)]
    q = max(w[target] / sum(w), EPS)
    best = max(range(K), key=lambda k: z[k])
    distance = sum(((k == best) + s[k] - (k == target)) ** 2 for k in range(K))
    return -math.log(q) + distance


def test_the_loss_is_the_equation_entry_by_entry() -> None:
    """A sample would be scored by another formula than the paper's."""
    for scale in (2.0, 20.0):  # the second one reaches the floor of 1e-4
        z, targets, u, v = _batch(scale=scale)
        expected = [_by_hand(z[b].tolist(), int(targets[b]), u[b].item(), v[b].tolist()) for b in range(len(z))]
        assert sop_loss(z, targets, u, v, reduction="none").tolist() == pytest.approx(expected, rel=1e-12)


def test_each_half_of_the_loss_trains_whom_it_should() -> None:
    """The network would chase the squared distance, or v the cross-entropy: the method would be another one."""
    z, targets, u, v = _batch()
    of_z, of_v = torch.autograd.grad(sop_loss(z, targets, u, v, reduction="sum"), (z, v))
    y = F.one_hot(targets, 4).double()
    hard = F.one_hot(z.argmax(1), 4).double()
    # d/dv of |h + U - V - y|^2 off the label, by hand
    assert torch.allclose(of_v, (1 - y) * 2 * (hard - v**2) * (-2 * v), atol=1e-12)
    only_ce = -(F.softmax(z, 1) + u**2 * y - (v**2 * (1 - y)).detach()).clamp(min=EPS)
    q = only_ce / only_ce.sum(1, keepdim=True)
    (expected,) = torch.autograd.grad(-q.gather(1, targets[:, None]).log().sum(), z)
    assert torch.allclose(of_z, expected, atol=1e-12)


def test_without_noise_it_is_cross_entropy_and_never_leaves_it() -> None:
    """Zero noise would change what the network learns, or a zero start would work after all."""
    z, targets, *_ = _batch(scale=1.0)
    zero = torch.zeros(6, 1, dtype=torch.float64, requires_grad=True), torch.zeros(6, 4, dtype=torch.float64)
    zero[1].requires_grad_()
    of_z, of_u, of_v = torch.autograd.grad(sop_loss(z, targets, *zero), (z, *zero))
    (plain,) = torch.autograd.grad(F.cross_entropy(z, targets), z)
    assert torch.allclose(of_z, plain, atol=1e-12)
    assert not of_u.any() and not of_v.any()


def test_new_samples_are_scored_by_the_network_alone() -> None:
    """Test data would borrow noise variables of training data, or training would do without them unnoticed."""
    z, targets, *_ = _batch()
    criterion = SOPLoss(num_samples=50, num_classes=4, init_std=1.0).eval()
    assert torch.allclose(criterion(z, targets), F.cross_entropy(z, targets), rtol=1e-3)
    assert criterion(torch.tensor([[80.0, 0.0]]), torch.tensor([1])).item() == pytest.approx(math.log(1e4), rel=1e-3)
    with pytest.raises(InvalidInput, match="needs index="):
        criterion.train()(z, targets)


@pytest.mark.parametrize("start", [1e-8, 0.05])
def test_noise_variables_grow_by_the_derived_factors(start: float) -> None:
    """A wrong label would switch on after another number of visits than the learning rate says."""
    B, lr_u, lr_v = 8, 3.0, 5.0
    z = torch.zeros(B, 3, dtype=torch.float64)
    z[:, 1] = 2.0  # the network says 1, the label is 0
    criterion = SOPLoss(B, 3, init_std=0.0).double()
    nn.init.constant_(criterion.u, start)
    nn.init.constant_(criterion.v, start)
    criterion(z, torch.zeros(B, dtype=torch.long), torch.arange(B)).backward()
    torch.optim.SGD(criterion.param_groups(lr_u, lr_v)).step()
    p, U = z[0].softmax(0), start**2
    squared = 1 + 4 * lr_u * (1 - U) / B
    kept = float(p[0]) + U
    total = float(p.sum()) + U - 2 * U
    ce = 2 * lr_u / B * (1 / kept - 1 / total)
    assert torch.allclose(criterion.u, torch.full_like(criterion.u, start * (squared + ce)), rtol=1e-10)
    assert torch.allclose(
        criterion.v[:, 1], torch.full((B,), start * (1 + 4 * lr_v * (1 - U) / B), dtype=torch.float64), rtol=1e-10
    )
    # the class that is neither label nor prediction: |0 - V|^2 pulls it back; the label's own entry is not used
    assert torch.allclose(
        criterion.v[:, 2], torch.full((B,), start * (1 - 4 * lr_v * U / B), dtype=torch.float64), rtol=1e-10
    )
    assert torch.equal(criterion.v[:, 0], torch.full((B,), start, dtype=torch.float64))


def test_variables_beyond_one_come_back() -> None:
    """A rate that overshoots would leave a variable where it has no gradient, and its label wrong for ever."""
    criterion = SOPLoss(4, 2, init_std=0.0)
    with torch.no_grad():
        criterion.u.copy_(torch.tensor([[1.5], [1.5], [-2.0], [0.5]]))
    z = torch.tensor([[4.0, 0.0], [4.0, 0.0]])  # the network agrees with the label
    optimizer = torch.optim.SGD(criterion.param_groups(lr_u=0.1))
    criterion(z, torch.tensor([0, 0]), torch.tensor([0, 2])).backward()
    assert criterion.u.squeeze(1).tolist() == [1.0, 1.5, -1.0, 0.5]
    optimizer.step()
    # |h + U - y|^2 = U^2 has slope 4 u^3, halved by the mean; cross-entropy is flat, as all mass is on the label
    u = criterion.u.squeeze(1)
    assert u[0] < 0.81 and u[2] > -0.81 and u[1] == 1.5 and u[3] == 0.5


def test_evaluation_leaves_the_variables_alone() -> None:
    """Looking at the training loss would change what is trained."""
    criterion = SOPLoss(3, 2, init_std=3.0).eval()
    before = criterion.u.clone(), criterion.v.clone()
    criterion(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([2, 0]))
    assert torch.equal(criterion.u, before[0]) and torch.equal(criterion.v, before[1])


def _trained(order: Tensor, steps: int = 12, sparse: bool = True, joint: bool = True) -> tuple[nn.Linear, SOPLoss]:
    """Train a linear model on 20 samples stored in an order; batches hold the same samples whatever the order."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 5, generator=generator), torch.randint(3, (20,), generator=generator)
    start = torch.rand(20, 4, generator=generator)
    position = order.argsort()  # where each sample is stored
    model, criterion = nn.Linear(5, 3), SOPLoss(20, 3, sparse=sparse)
    nn.init.zeros_(model.bias), nn.init.constant_(model.weight, 0.1)
    with torch.no_grad():
        criterion.u.copy_(start[order, :1])
        criterion.v.copy_(start[order, 1:])
    groups, noise = [{"params": model.parameters()}], criterion.param_groups(lr_u=0.5, lr_v=0.7)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    optimizers = [torch.optim.SGD(groups + noise, **options)]  # type: ignore[arg-type]
    if not joint:
        optimizers = [torch.optim.SGD(groups, **options), torch.optim.SGD(noise)]  # type: ignore[arg-type]
    for _ in range(steps):
        batch = torch.randperm(20, generator=generator)[:6]
        for optimizer in optimizers:
            optimizer.zero_grad()
        criterion(model(x[batch]), y[batch], position[batch]).backward()
        for optimizer in optimizers:
            optimizer.step()
    return model, criterion


def test_permuting_the_training_set_permutes_the_variables() -> None:
    """The noise would belong to places and not to samples."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    (first, a), (second, b) = _trained(torch.arange(20)), _trained(order)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(a.u[order], b.u) and torch.equal(a.v[order], b.v)


@pytest.mark.parametrize("options", [{"sparse": False}, {"joint": False}])
def test_sparse_or_dense_in_one_optimizer_or_two_is_the_same(options: dict[str, bool]) -> None:
    """Momentum or decay of the model's group would reach u and v, or sparse gradients would lose a sample."""
    (first, a), (second, b) = _trained(torch.arange(20)), _trained(torch.arange(20), **options)
    assert torch.allclose(first.weight, second.weight, atol=1e-6)
    assert torch.allclose(a.u, b.u, atol=1e-6) and torch.allclose(a.v, b.v, atol=1e-6)


def test_samples_outside_the_batch_do_not_move() -> None:
    """A step would change variables of samples that it has not seen."""
    criterion = SOPLoss(10, 3, init_std=0.3)
    before = {name: p.detach().clone() for name, p in criterion.named_parameters()}
    optimizer = torch.optim.SGD(criterion.param_groups(1.0, 1.0), momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        criterion(torch.zeros(2, 3), torch.tensor([1, 2]), torch.tensor([7, 3])).backward()
        optimizer.step()
    seen = torch.tensor([3, 7])
    rest = torch.tensor([i for i in range(10) if i not in (3, 7)])
    for name, parameter in criterion.named_parameters():
        assert torch.equal(parameter[rest], before[name][rest]), name
        assert not torch.equal(parameter[seen], before[name][seen]), name


def test_the_terms_of_sop_plus() -> None:
    """Consistency would pull the wrong one of two views, or balance would not be lowest at balanced predictions."""
    z, targets, *_ = _batch()
    other = z.detach().roll(1, dims=1).requires_grad_()
    index = torch.arange(6)
    plain, plus = (SOPLoss(6, 4, init_std=0.0, consistency=w, balance=w / 9) for w in (0.0, 0.9))
    p, log_p2 = z.softmax(1), other.log_softmax(1)
    kl = (p * (p.log() - log_p2)).sum(1).mean()
    balance = -p.mean(0).log().mean()
    found = plus(z, targets, index, other)
    assert found.item() == pytest.approx((plain(z, targets, index) + 0.9 * kl + 0.1 * balance).item(), rel=1e-3)
    (slope,) = torch.autograd.grad(found, other)
    assert torch.allclose(slope, 0.9 * (other.softmax(1) - p) / 6, atol=1e-12)
    even = torch.eye(4, dtype=torch.float64) * 50
    only = SOPLoss(4, 4, init_std=0.0, balance=1.0)
    balanced = only(even, torch.arange(4), torch.arange(4)) - SOPLoss(4, 4, init_std=0.0)(
        even, torch.arange(4), torch.arange(4)
    )
    assert balanced.item() == pytest.approx(math.log(4), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.01, 50), st.integers(0, 3))
def test_it_is_bounded_and_even_in_the_variables(u: float, v: float, scale: float, label: int) -> None:
    """A hopeless sample would dominate its batch, or a variable's sign would matter."""
    z = scale * torch.tensor([[3.0, -1.0, 0.5, -2.0]])
    us, vs = torch.tensor([[u]]), torch.full((1, 4), v)
    loss = sop_loss(z, torch.tensor([label]), us, vs)
    assert torch.equal(loss, sop_loss(z, torch.tensor([label]), -us, -vs))
    # -log eps, and at most 4 for the label's entry and the prediction's, 1 for each of the rest
    assert 0 <= loss.item() <= math.log(1 / EPS) + 4 + 4 + 2 + 1e-5


def test_half_precision_scores_do_not_lose_the_start() -> None:
    """The square of u = 1e-8 underflows in float16: a variable that can't grow would look like a clean label."""
    criterion = SOPLoss(2, 3, init_std=0.0)
    nn.init.constant_(criterion.u, 1e-8)
    scores = torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float16, requires_grad=True)
    criterion(scores, torch.tensor([0]), torch.tensor([1])).backward()
    gradient = criterion.u.grad.to_dense()  # type: ignore[union-attr]
    assert gradient[1].item() < -1e-8 and scores.grad.dtype == torch.float16  # type: ignore[union-attr]
    with pytest.raises(InvalidInput, match="float32"):
        criterion.half()(scores, torch.tensor([0]), torch.tensor([1]))


def test_three_lines_in_a_plain_loop_find_wrong_labels() -> None:
    """The part would not do its work in the user's own loop: a fifth of the digits' labels are wrong."""
    data = digits(train=500, validation=100, test=400)
    x, noisy = data.train.inputs, symmetric_noise(data.train.targets, 0.2, 10)
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    pairs = IndexedDataset(torch.utils.data.TensorDataset(x, noisy.targets))
    loader = torch.utils.data.DataLoader(pairs, batch_size=50, shuffle=True, generator=generator)
    criterion = SOPLoss(len(pairs), num_classes=10)
    groups = [{"params": model.parameters()}, *criterion.param_groups(lr_u=10, lr_v=10)]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    for _ in range(30):
        for inputs, targets, index in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets, index).backward()
            optimizer.step()
    found = noise_detection(criterion.flagged(), noisy.corrupted)
    assert found["noise_precision"] > 0.85 and found["noise_recall"] > 0.6
    s = criterion.noise(noisy.targets)
    assert torch.equal(s.gather(1, noisy.targets[:, None]) > 0.5, criterion.flagged()[:, None])
    assert (model(data.test.inputs).argmax(1) == data.test.targets).double().mean() > 0.85


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c(torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2)), "integers"),
        (lambda c: c(torch.zeros(2, 3), torch.zeros(2).long(), torch.tensor([1])), r"shape \(2,\)"),
        (lambda c: c(torch.zeros(2, 3), torch.zeros(2).long(), torch.tensor([1, 5])), "0..4 for 5 training samples"),
        (lambda c: c(torch.zeros(2, 4), torch.zeros(2).long(), torch.tensor([1, 2])), r"\(2, 4\)"),
        (lambda c: c(torch.zeros(2, 3), torch.zeros(2).long(), torch.tensor([1, 2]), torch.zeros(2, 3)), "augmented="),
        (lambda c: c(torch.zeros(2, 3), torch.full((2,), 3), torch.tensor([1, 2])), "0..2"),
        (lambda c: SOPLoss(0, 3), "at least 1 sample"),
        (lambda c: SOPLoss(5, 3, eps=0.5), "eps"),
        (lambda c: SOPLoss(5, 3, balance=-1.0), "balance"),
        (lambda c: c.noise(torch.zeros(4).long()), r"\(5,\)"),
    ],
)
def test_bad_input_is_one_clear_error(call, said) -> None:
    """An index or a label that does not fit would train another sample's noise, silently."""
    with pytest.raises(InvalidInput, match=said) as caught:
        call(SOPLoss(5, 3))
    assert "\n" not in str(caught.value)
