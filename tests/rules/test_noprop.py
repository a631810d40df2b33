"""NoProp against its objectives written out, chains with oracles, and the limits of its schedules."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.lab.cost import counted
from assay.models.mlp import MLP
from assay.models.noprop_net import NoPropNet
from assay.rules._noise_schedules import CosineSchedule, LearnedSchedule, snr_slope
from assay.rules.denoising import signal_to_noise
from assay.rules.fitting import fit
from assay.rules.noprop import NoProp


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rule(blocks: int | None = 3, classes: int = 4, net: dict[str, Any] | None = None, **options: Any) -> NoProp:
    model = NoPropNet((6,), classes, blocks=blocks, width=8, time_dim=4, generator=_generator(), **(net or {}))
    return NoProp(model, classes, generator=_generator(2), **options)


def _batch(classes: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(8, 6, generator=_generator(1)), torch.arange(8) % classes


class _Oracle(nn.Module):
    """Knows the label, which is all of x; `logits(z, u, t)` says what it answers."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.weight, self.logits, self.encoded = nn.Parameter(torch.zeros(1)), logits, 0

    def encode(self, x: Tensor) -> Tensor:
        self.encoded += 1
        return F.one_hot(x.long(), 3).float()

    def forward(self, z: Tensor, code: Tensor, t: Tensor | None = None) -> Tensor:
        return self.logits(z, code, t) + 0 * self.weight


class _OracleNet(nn.Module):
    num_classes = embed_dim = 3

    def __init__(self, logits: Any, blocks: int | None) -> None:
        super().__init__()
        self.time_conditioned = blocks is None
        self.blocks = nn.ModuleList(_Oracle(logits) for _ in range(blocks or 1))


def _certain(z: Tensor, u: Tensor, t: Tensor | None) -> Tensor:
    return 1e4 * u


def _towards(z: Tensor, u: Tensor, t: Tensor) -> Tensor:
    return (u - z) / (1 - t[:, None])


def test_the_chain_of_a_perfect_denoiser_has_the_marginals_of_training() -> None:
    """Prediction would show the blocks embeddings with another mean or noise than training did."""
    rule = NoProp(_OracleNet(_certain, 5), 3, generator=_generator(1))
    labels = torch.arange(3).repeat(4000).float()
    for t, z in enumerate(rule.features(labels).values(), start=1):
        retention = CosineSchedule()(torch.tensor(t / 5))
        error = z - retention.sqrt() * F.one_hot(labels.long(), 3)
        assert error.mean().abs() < 0.03 and abs(error.var() - (1 - retention)) < 0.03


def test_ancestral_steps_in_continuous_time_have_the_marginal_of_the_end() -> None:
    """The grid of times would not end at the label."""
    rule = NoProp(_OracleNet(_certain, None), 3, kind="ct", schedule="cosine", inference_steps=30)
    labels = torch.arange(3).repeat(2000).float()
    (z,) = rule.features(labels).values()
    error = z - 0.99**0.5 * F.one_hot(labels.long(), 3)
    assert error.mean().abs() < 0.01 and abs(error.var() - 0.01) < 0.002


@pytest.mark.parametrize("steps", [1, 7])
def test_flow_with_the_true_field_arrives_at_the_embedding(steps: int) -> None:
    """Euler's steps would have the wrong time or length: with the oracle they end at u from any start."""
    rule = NoProp(_OracleNet(_towards, None), 3, kind="fm", inference_steps=steps)
    labels = torch.tensor([0.0, 1.0, 2.0, 1.0])
    (z,) = rule.features(labels).values()
    torch.testing.assert_close(z, F.one_hot(labels.long(), 3).float(), atol=1e-5, rtol=0)
    assert rule.predict(labels).argmax(1).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_are_not_lost_in_half_precision(dtype: torch.dtype) -> None:
    """A step of a thousandth would be less than half a unit in the last place, and z stay where it was."""
    rule = NoProp(_OracleNet(lambda z, u, t: u.to(z.dtype), None), 3, kind="fm").to(dtype)
    labels = torch.arange(3).repeat(20)
    start = torch.randn(60, 3, generator=rule._prediction_noise(), dtype=dtype)
    (z,) = rule.features(labels.float()).values()
    assert z.dtype == dtype
    torch.testing.assert_close(z.float(), start.float() + F.one_hot(labels), atol=0.01, rtol=0.01)


def test_flow_loss_vanishes_at_the_true_field() -> None:
    """The target would not be the field's conditional mean, u - z_0."""
    rule = NoProp(_OracleNet(_towards, None), 3, kind="fm")
    loss = rule.backward(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1, 2]))["loss"]
    assert loss < 1e-6


def test_flow_chooses_the_nearest_embedding() -> None:
    """Scores would order the classes otherwise than the distance to their embeddings does."""
    w = torch.randn(4, 5, generator=_generator(3))
    rule = _rule(None, net={"embed_dim": 5}, kind="fm", embed=w, inference_steps=3)
    x, _ = _batch()
    (z,) = rule.features(x).values()
    assert torch.equal(rule.predict(x).argmax(1), torch.cdist(z, w).argmin(1))


def test_discrete_loss_and_gradients_are_the_equation() -> None:
    """The objective would differ from L_t written out with the same noise, in value or in gradient."""
    rule = _rule(3, per_batch=3, eta=0.7).double()
    x, y = _batch()
    x = x.double()
    noise = [torch.randn(8, 4, generator=_generator(i), dtype=torch.float64) for i in range(4)]
    queue = iter(noise)
    rule._draw = lambda *_, **__: next(queue)  # type: ignore[method-assign]
    logs = rule.backward(x, y)
    found = {name: p.grad.clone() for name, p in rule.named_parameters()}
    rule.zero_grad()
    u = F.one_hot(y, 4).double()
    levels = [float(CosineSchedule()(torch.tensor(t / 3, dtype=torch.float64))) for t in range(4)]
    end = levels[3] ** 0.5 * u + (1 - levels[3]) ** 0.5 * noise[0]
    total = F.cross_entropy(rule.readout(end), y)
    for t in (1, 2, 3):
        block, low, high = rule.model.blocks[t - 1], levels[t - 1], levels[t]
        guess = block(low**0.5 * u + (1 - low) ** 0.5 * noise[t], block.encode(x)).softmax(1)
        part = 0.7 / 2 * (high / (1 - high) - low / (1 - low)) * ((guess - u) ** 2).sum(1).mean()
        torch.testing.assert_close(logs[f"loss/block{t}"], part.detach())
        total = total + part
    total.backward()
    for name, p in rule.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


def test_continuous_loss_is_the_equation() -> None:
    """The weight would not be eta SNR'(t) / 2 at each sample's own time."""
    rule = _rule(None, kind="ct", eta=2.0, schedule="cosine").double()
    x, y = _batch()
    drawn = {torch.rand: torch.linspace(0.1, 0.8, 8).double(), torch.randn: torch.ones(8, 4).double()}
    rule._draw = lambda how, *_, **__: drawn[how]  # type: ignore[method-assign]
    found = rule.backward(x.double(), y)["loss/block1"]
    t, u, h = drawn[torch.rand], F.one_hot(y, 4).double(), 1e-5
    schedule, block = CosineSchedule(), rule.model.blocks[0]
    slope = (signal_to_noise(schedule(t + h)) - signal_to_noise(schedule(t - h))) / (2 * h)
    level = schedule(t)[:, None]
    guess = block(level.sqrt() * u + (1 - level).sqrt(), block.encode(x.double()), t).softmax(1)
    torch.testing.assert_close(found, (slope * (guess - u).square().sum(1)).mean().detach(), rtol=1e-6, atol=1e-9)


def test_discrete_weights_become_the_slope_as_blocks_multiply() -> None:
    """Continuous time would not be the limit of discrete time."""
    t = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    for schedule in (CosineSchedule(), LearnedSchedule(generator=_generator()).double()):
        retention, slope = snr_slope(schedule, t)
        step = 1e-4
        before = schedule(t - step)
        difference = (signal_to_noise(schedule(t)) - signal_to_noise(before)) / step
        torch.testing.assert_close(slope, difference, rtol=2e-3, atol=0)
        torch.testing.assert_close(retention, schedule(t))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 3))
def test_the_learned_schedule_rises_for_any_weights(seed: int, scale: float) -> None:
    """Training could turn noise into signal: retention must rise from sigmoid(g0 - ...) to its end for any weights."""
    schedule = LearnedSchedule(generator=_generator(seed)).double()
    with torch.no_grad():
        for p in schedule.parameters():
            p.mul_(scale)
        levels = schedule(torch.linspace(0, 1, 50).double())
    assert (levels.diff() > 0).all() and levels[0] > 0 and levels[-1] < 1


def test_schedules_start_at_noise_and_end_at_the_label() -> None:
    """The ends would not be those that the module says; every depth must have distinct levels."""
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(CosineSchedule()(ends), torch.tensor([1e-3, 0.99]))
    torch.testing.assert_close(LearnedSchedule()(ends), torch.sigmoid(torch.tensor([-5.0, 5.0])))
    assert (CosineSchedule()(torch.linspace(0, 1, 65)).diff() > 0).all()


def test_a_mini_batch_moves_the_drawn_block_and_the_readout_alone() -> None:
    """An idle block would get a gradient, and so momentum and weight decay."""
    rule = _rule(3)
    for _ in range(4):
        rule.zero_grad(set_to_none=True)
        logs = rule.backward(*_batch())
        (drawn,) = (int(name[-1]) for name in logs if name.startswith("loss/block"))
        for t, block in enumerate(rule.model.blocks, start=1):
            assert all((p.grad is not None) == (t == drawn) for p in block.parameters())
        assert all(p.grad is not None for p in rule.readout.parameters())


def test_orders() -> None:
    """A block would never be trained, or not in its turn."""
    for order, expected in (("cycle", [[1, 2], [1, 3], [2, 3], [1, 2]]), ("random", None)):
        rule = _rule(3, order=order, per_batch=2)
        optimizer = torch.optim.SGD(rule.parameters(), lr=0.01)
        seen = [sorted(int(n[-1]) for n in rule.step(*_batch(), optimizer) if "block" in n) for _ in range(4)]
        assert seen == expected if expected else {t for pair in seen for t in pair} == {1, 2, 3}
    rule = _rule(3, order="epoch")
    for phase in rule.phases(3):
        rule.zero_grad(set_to_none=True)
        assert f"loss/{phase.name}" in rule.backward(*_batch())
    assert phase.name == "block3"


def test_several_blocks_average_to_the_same_objective() -> None:
    """The sum over blocks would depend on how many are drawn: over all draws, the mean of one is the loss of all."""
    rule = _rule(3, per_batch=3)
    rule._draw = lambda how, *shape, **_: torch.ones(shape)  # type: ignore[method-assign]
    whole = {k: v for k, v in rule.backward(*_batch()).items() if "block" in k}
    rule.per_batch, rule.order = 1, "epoch"
    for t, name in enumerate(whole):
        rule._phase = t
        torch.testing.assert_close(rule.backward(*_batch())[name] / 3, whole[name])


@pytest.mark.parametrize("kind", ["dt", "ct", "fm"])
def test_learned_embeddings_learn_and_one_hot_ones_stay(kind: str) -> None:
    """W would be frozen though learned, or one-hot embeddings would move."""
    blocks = 2 if kind == "dt" else None
    rule = _rule(blocks, net={"embed_dim": 5}, kind=kind, embed=5)
    torch.testing.assert_close(rule.embedding @ rule.embedding.T, torch.eye(4), atol=1e-5, rtol=0)
    rule.backward(*_batch())
    assert rule.embedding.grad is not None and rule.embedding.grad.abs().sum() > 0
    assert not any("embedding" in name for name, _ in _rule(blocks, kind=kind).named_parameters())


def test_memory_does_not_grow_with_depth() -> None:
    """Blocks' activations would be kept together: peak saved bytes must be those of one block, whatever is drawn."""
    found = []
    for depth, per_batch in ((2, 1), (8, 1), (8, 8)):
        cost: dict[str, float] = {}
        rule = _rule(depth, per_batch=per_batch)
        with counted(cost, rule):
            rule.backward(*_batch())
        found.append(cost["saved_bytes"])
    assert found[0] == found[1] and found[2] < 1.1 * found[0]


@pytest.mark.parametrize(("kind", "blocks", "expected"), [("ct", None, [1]), ("fm", None, [1]), ("dt", 3, [1, 1, 1])])
def test_inputs_are_encoded_once_per_block(kind: str, blocks: int | None, expected: list[int]) -> None:
    """Prediction would run the encoder at every step or for every chain."""
    steps = {} if kind == "dt" else {"inference_steps": 5}
    rule = NoProp(_OracleNet(_certain, blocks), 3, kind=kind, samples=4, **steps)
    rule.predict(torch.tensor([0.0, 2.0]))
    assert [block.encoded for block in rule.model.blocks] == expected


def test_predictions_repeat_and_samples_vary() -> None:
    """A prediction could not be repeated, or the caller's own noise would change nothing; means must have less spread."""
    x, _ = _batch()
    single, mean = _rule(3), _rule(3, samples=30)
    assert torch.equal(single.predict(x), single.predict(x))
    spread = [torch.stack([r.sample(x, _generator(i)) for i in range(12)]).std(0).mean() for r in (single, mean)]
    assert 0 < spread[1] < 0.4 * spread[0]


def test_prototypes_as_images_train() -> None:
    """Embeddings of the size of an image would not pass through the block's encoder."""
    net = NoPropNet((1, 4, 4), 2, blocks=2, encoder="conv", channels=(3,), width=8, embed_dim="image")
    rule = NoProp(net, 2, embed=torch.randn(2, 1, 4, 4, generator=_generator()))
    y = torch.arange(8) % 2
    x = torch.randn(8, 1, 4, 4, generator=_generator(1)) + y.view(-1, 1, 1, 1)
    before = rule.embedding.detach().clone()
    fit(rule, [(x, y)], epochs=2)
    assert rule.embedding.shape == (2, 16) and not torch.equal(before, rule.embedding)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "ode"}, "kind must be"),
        ({"kind": "fm"}, r"NoPropNet\(blocks=None\)"),
        ({"order": "sorted"}, "order must be"),
        ({"per_batch": 4}, "number of blocks, 3"),
        ({"order": "epoch", "per_batch": 2}, "leave per_batch out"),
        ({"schedule": "linear"}, "schedule must be"),
        ({"eta": 0.0}, "eta must be above 0"),
        ({"samples": 0}, "at least 1"),
        ({"inference_steps": 0}, "at least 1"),
        ({"inference_steps": 9}, "as many steps as it has blocks"),
        ({"embed": "random"}, "embed must be"),
        ({"embed": 7}, "embed_dim=7"),
        ({"embed": torch.zeros(3, 4)}, "shape"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], says: str) -> None:
    """A wrong option would be noticed in training or never."""
    with pytest.raises(InvalidInput, match=says):
        _rule(3, **options)


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"schedule": "cosine"}, {"order": "cycle"}])
def test_flow_refuses_what_it_does_not_have(options: dict[str, Any]) -> None:
    """An option would be ignored in silence."""
    with pytest.raises(InvalidInput, match="leave"):
        _rule(None, kind="fm", **options)


def test_other_models_are_told_what_is_missing() -> None:
    """An ordinary network, or one for other classes or times, would fail in the middle of the first step."""
    with pytest.raises(InvalidInput, match=r"needs a denoiser.*MLP has no 'blocks'.*NoPropNet"):
        NoProp(MLP((6,), 4), 4)
    with pytest.raises(InvalidInput, match="separate blocks"):
        NoProp(NoPropNet((6,), 4, blocks=None, width=4), 4)
    with pytest.raises(InvalidInput, match="num_classes"):
        NoProp(NoPropNet((6,), 4, blocks=2, width=4), 5)


@pytest.mark.parametrize("y", [torch.rand(8), torch.rand(8, 4), torch.full((8,), 4), torch.full((8,), -1)])
def test_labels_that_are_no_classes_are_refused(y: Tensor) -> None:
    """A target without an embedding would wrap around or fail inside torch."""
    with pytest.raises(InvalidInput, match="NoProp embeds"):
        _rule(3).backward(_batch()[0], y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("kind", ["dt", "fm"])
def test_labels_of_any_integer_type_are_the_same_labels(kind: str, dtype: torch.dtype) -> None:
    """Bytes would select embeddings as a mask does, not as indices, or the loss would refuse them."""
    rules = [_rule(2 if kind == "dt" else None, kind=kind, net={"embed_dim": 5}, embed=5) for _ in range(2)]
    x, y = _batch()
    found, expected = rules[0].backward(x, y.to(dtype)), rules[1].backward(x, y)
    assert found == expected
    for p, q in zip(rules[0].parameters(), rules[1].parameters(), strict=True):
        assert p.grad is q.grad is None or torch.equal(p.grad, q.grad)


def test_backward_without_gradients_is_an_error() -> None:
    """Under `torch.no_grad` losses would come back as if all were well, and nothing would be learned."""
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        _rule(2).backward(*_batch())


def test_a_fixed_part_stays_and_trains_no_more() -> None:
    """Frozen parameters would get gradients, or a wholly frozen block would break the step."""
    rule = _rule(2, per_batch=2)
    for p in rule.model.blocks[0].parameters():
        p.requires_grad_(False)
    fit(rule, [_batch()], epochs=1, optimizer=partial(torch.optim.SGD, lr=0.1))
    assert all(p.grad is None for p in rule.model.blocks[0].parameters())
    assert len(rule.groups()) == 2
