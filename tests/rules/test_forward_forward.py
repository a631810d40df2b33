"""Forward-Forward against its equations, written out in NumPy with derivatives by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.forward_forward import ForwardForward, embed_label, forward_forward_init, rms_normalise


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rule(depth: int = 3, classes: int = 3, **options: object) -> ForwardForward:
    model = MLP((9,), classes, width=7, depth=depth, generator=_generator()).double()
    return ForwardForward(model, classes, generator=_generator(2), **options)


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(11, 9, generator=_generator(1)).double(), torch.arange(11) % 3


def _normal(z: np.ndarray) -> np.ndarray:
    return z / (np.sqrt((z**2).mean(1, keepdims=True)) + 1e-8)


def by_hand(ff: ForwardForward, x: Tensor, y: Tensor, false: Tensor, peer: float, straight: bool) -> list[dict]:
    """Return per layer the loss, dL/dW, dL/db and the new mean activity, all from the equations."""
    results, count = [], len(x)
    positive, negative = x.numpy().copy(), x.numpy().copy()
    for row in range(count):
        positive[row, :3], negative[row, :3] = 0.0, 0.0
        positive[row, int(y[row])], negative[row, int(false[row])] = 1.0, 1.0
    z = _normal(np.concatenate([positive, negative]))
    target = np.concatenate([np.ones(count), np.zeros(count)])
    for index, layer in enumerate(ff.layers):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        h = z @ weight.T + bias
        a = np.maximum(h, 0)
        logit = (a**2).sum(1) - a.shape[1]
        probability = 1 / (1 + np.exp(-logit))
        loss = -np.mean(target * np.log(probability) + (1 - target) * np.log1p(-probability))
        d_a = 2 * a * ((probability - target) / (2 * count))[:, None]
        mean = 0.9 * ff.get_buffer(f"peer_mean{index}").numpy() + 0.1 * a[:count].mean(0)
        if peer:
            loss += peer * np.mean((mean - mean.mean()) ** 2)
            d_a[:count] += peer * 2 * (mean - mean.mean()) / len(mean) * 0.1 / count
        d_h = d_a if straight else d_a * (h > 0)
        results.append({"loss": loss, "weight": d_h.T @ z, "bias": d_h.sum(0), "mean": mean})
        z = _normal(a)
    return results


@pytest.mark.parametrize("peer", [0.0, 0.03, 2.0])
@pytest.mark.parametrize("straight", [True, False])
def test_update_is_the_equations(peer: float, straight: bool) -> None:
    """Loss, gradient or mean activity of a layer would differ from the equations in float64."""
    ff, (x, y) = _rule(peer=peer, straight_through=straight), _batch()
    false = _rule().false_labels(y)
    expected = by_hand(ff, x, y, false, peer, straight)
    logs = ff.backward(x, y)
    for index, (layer, want) in enumerate(zip(ff.layers, expected, strict=True)):
        assert logs[f"loss/block{index + 1}"].item() == pytest.approx(want["loss"], rel=1e-10)
        np.testing.assert_allclose(layer.weight.grad.numpy(), want["weight"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer.bias.grad.numpy(), want["bias"], rtol=1e-9, atol=1e-12)
        if peer:
            np.testing.assert_allclose(ff.get_buffer(f"peer_mean{index}").numpy(), want["mean"], rtol=1e-12)
    assert logs["loss"].item() == pytest.approx(sum(want["loss"] for want in expected), rel=1e-10)


def test_silent_network_costs_the_closed_form() -> None:
    """Without activity the loss of each layer is (softplus(-d) + softplus(d)) / 2."""
    ff = _rule(peer=0.0)
    with torch.no_grad():
        for parameter in ff.trained_parameters():
            parameter.zero_()
    d = 7
    expected = (math.log1p(math.exp(-d)) + d + math.log1p(math.exp(-d))) / 2
    logs = ff.backward(*_batch())
    assert logs["loss/block2"].item() == pytest.approx(expected, rel=1e-12)
    assert logs["loss"].item() == pytest.approx(3 * expected, rel=1e-12)


def test_straight_through_wakes_silent_units_by_peer_normalisation_only() -> None:
    """A unit that is never active would get no gradient at all, or one without peer normalisation."""
    results = []
    for peer, straight in ((0.03, True), (0.03, False), (0.0, True)):
        ff = _rule(depth=1, peer=peer, straight_through=straight)
        with torch.no_grad():
            ff.layers[0].bias[0] = -100.0
        ff.backward(*_batch())
        results.append(ff.layers[0].weight.grad[0].abs().sum().item())
    assert results[0] > 0 and results[1:] == [0.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), d=st.integers(1, 40), scale=st.floats(0.01, 100), seed=st.integers(0, 2**31))
def test_normalised_rows_have_unit_rms(rows: int, d: int, scale: float, seed: int) -> None:
    """A layer's goodness would leak into the next through its length."""
    z = scale * torch.randn(rows, d, generator=_generator(seed)).double()
    n = rms_normalise(z)
    torch.testing.assert_close(n.square().mean(1), torch.ones(rows).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(n * z.square().mean(1, keepdim=True).sqrt(), z, rtol=1e-3, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(classes=st.integers(2, 8), size=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_false_labels_are_labels_and_never_true(classes: int, size: int, seed: int) -> None:
    """A negative sample would carry its true label, or none."""
    y = torch.randint(0, classes, (size,), generator=_generator(seed))
    ff = ForwardForward(MLP((9,), classes, width=3, depth=1), classes, generator=_generator(seed))
    false = ff.false_labels(y)
    assert (false != y).all() and false.min() >= 0 and false.max() < classes


def test_false_labels_are_uniform_over_the_others() -> None:
    """Some wrong labels would be shown more often than others."""
    counts = torch.bincount(_rule(classes=5).false_labels(torch.full((20000,), 2)), minlength=5).double()
    assert counts[2] == 0
    deviation = math.sqrt(20000 * 0.25 * 0.75)
    assert (counts[[0, 1, 3, 4]] - 5000).abs().max() < 4 * deviation


@pytest.mark.parametrize(("depth", "skip_first"), [(3, True), (3, False), (1, True)])
def test_prediction_is_the_sweep_over_labels(depth: int, skip_first: bool) -> None:
    """The shared first layer would not give the goodness of each label embedded on its own."""
    ff, (x, _) = _rule(depth=depth, skip_first=skip_first), _batch()
    expected = torch.zeros(len(x), 3, dtype=torch.float64)
    with torch.no_grad():
        for c in range(3):
            z = x.clone()
            z[:, :3] = torch.eye(3)[c]
            for index, layer in enumerate(ff.layers):
                a = layer(z / (z.square().mean(1, keepdim=True).sqrt() + 1e-8)).clamp(min=0)
                if index > 0 or not skip_first or depth == 1:
                    expected[:, c] += a.square().sum(1)
                z = a
    torch.testing.assert_close(ff.predict(x), expected, rtol=1e-10, atol=1e-12)


def test_prediction_ignores_the_labels_entries() -> None:
    """What stood in the first C pixels would change the prediction."""
    ff, (x, y) = _rule(), _batch()
    disturbed = x.clone()
    disturbed[:, :3] = 1e3
    assert torch.equal(ff.predict(x), ff.predict(disturbed))
    features = ff.features(disturbed)
    assert all(torch.equal(h, features[name]) for name, h in ff.features(x).items())
    logs, others = ff.backward(x, y), _rule().backward(disturbed, y)
    assert torch.equal(logs["loss"], others["loss"])


def test_features_are_those_of_the_neutral_label() -> None:
    """Features would depend on a label that inference does not know."""
    ff, (x, _) = _rule(), _batch()
    z = x.clone()
    z[:, :3] = 1 / 3
    for layer, found in zip(ff.layers, ff.features(x).values(), strict=True):
        z = layer(rms_normalise(z)).clamp(min=0)
        torch.testing.assert_close(found, z.detach())
    assert ff.head() is None


def test_threshold_can_be_a_number() -> None:
    """A given threshold would be ignored."""
    ff = _rule(depth=1, peer=0.0, threshold=2.0)
    with torch.no_grad():
        for parameter in ff.trained_parameters():
            parameter.zero_()
    expected = (math.log1p(math.exp(-2)) + 2 + math.log1p(math.exp(-2))) / 2
    assert ff.backward(*_batch())["loss"].item() == pytest.approx(expected, rel=1e-12)


def test_initialisation_has_the_papers_scale() -> None:
    """Weights would not be N(0, 1 / d_out), or the head be touched."""
    model = MLP((400,), 3, width=300, depth=2, generator=_generator())
    head = model.head.weight.clone()
    forward_forward_init(model, _generator(1))
    for block in (model.block1, model.block2):
        assert block[0].weight.std().item() * math.sqrt(300) == pytest.approx(1, abs=0.02)
        assert block[0].weight.mean().item() == pytest.approx(0, abs=5e-4)
        assert not block[0].bias.any()
    assert torch.equal(head, model.head.weight)
    again = MLP((400,), 3, width=300, depth=2)
    ForwardForward(again, 3, initialise=True, generator=_generator(1))
    assert torch.equal(again.block2[0].weight, model.block2[0].weight)


def test_embedding_leaves_the_input_alone() -> None:
    """The user's mini-batch would be overwritten by labels."""
    x = torch.ones(2, 5)
    embedded = embed_label(x, torch.eye(2))
    assert torch.equal(x, torch.ones(2, 5))
    assert torch.equal(embedded, torch.tensor([[1.0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MLP((9,), 9), {"num_classes": 9}, "9 entries"),
        (MLP((9,), 3), {"num_classes": 1}, "at least 2"),
        (CNN((1, 8, 8), 3), {}, "Linear - ReLU"),
        (MLP((9,), 3, batch_norm=True), {}, "BatchNorm1d"),
        (nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3)), {}, "Tanh"),
        (nn.Linear(9, 3), {}, "nn.Sequential"),
        (MLP((9,), 3), {"peer": -1.0}, "peer"),
        (MLP((9,), 3), {"threshold": "height"}, "threshold"),
    ],
)
def test_refuses_what_it_cannot_train(model: nn.Module, options: dict, message: str) -> None:
    """A model on which the algorithm is not defined would be trained to nonsense."""
    with pytest.raises(InvalidInput, match=message):
        ForwardForward(model, **({"num_classes": 3} | options))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.ones(2, 9), torch.tensor([0, 3]), "from 0 to num_classes - 1 = 2.*got 0 to 3"),
        (torch.ones(2, 9), torch.tensor([-1, 1]), "got -1 to 1"),
        (torch.ones(2, 9), torch.eye(2, 3), r"integer targets \(2,\), got \(2, 3\) of torch.float32"),
        (torch.ones(2, 9), torch.tensor([0.0, 1.0]), "integer targets"),
        (torch.ones(2, 8), torch.tensor([0, 1]), "expected inputs of 9 entries, got 8"),
    ],
)
def test_labels_that_cannot_be_embedded_are_refused_before_anything_moves(x: Tensor, y: Tensor, message: str) -> None:
    """A label out of range would be written over the image, or end in a traceback of torch's one-hot."""
    ff = ForwardForward(MLP((9,), 3), 3)
    before = {name: value.clone() for name, value in ff.state_dict().items()}
    with pytest.raises(InvalidInput, match=message):
        ff.step(x, y, torch.optim.SGD(ff.parameters(), lr=0.1))
    assert all(torch.equal(before[name], value) for name, value in ff.state_dict().items())


def test_a_network_without_a_hidden_layer_is_refused() -> None:
    """Nothing would be trained, and prediction would be of no layer."""
    with pytest.raises(InvalidInput, match="no blocks to train"):
        ForwardForward(MLP((9,), 3, depth=0), 3)
