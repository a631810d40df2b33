"""What the study of noprop adds of its own: controls without denoising, arms of equal work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.lab.cost import counted
from assay.models.noprop_net import NoPropNet
from assay.papers.noprop.controls import IndependentBlocks, RandomBlocks
from assay.papers.noprop.study import study
from assay.rules.fitting import fit
from assay.rules.noprop import NoProp


def _net(blocks: int = 2) -> NoPropNet:
    return NoPropNet((6,), 3, blocks=blocks, width=8, generator=torch.Generator().manual_seed(0))


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_do_the_same_operations(scale: str) -> None:
    """An arm would win by more passes: block passes per image must be equal, except for the trained head's."""
    arms = study(scale).arms
    for data in {name.split("/")[0] for name in arms}:
        work = {}
        for name, arm in arms.items():
            if name.startswith(data):
                alone = "blocks=None" in arm.model or "blocks=1," in arm.model
                stack = next(b for b in (3, 4, 10) if f"blocks={b}," in arms[f"{data}/no-prop"].model)
                work[name] = arm.epochs * (1 if alone else stack)
        assert len(set(work.values())) == 1, work


def test_arms_that_compete_are_tuned_alike() -> None:
    """An arm would have more candidates, another optimizer or another schedule."""
    arms = study("desk").arms.values()
    assert {len(arm.tuning()) for arm in arms} == {4}
    assert len({arm.optimizer.split(",", 1)[1] for arm in arms}) == 1
    assert all(arm.schedule == f"cosine-annealing(T_max={arm.epochs})" for arm in arms)


def test_independent_blocks_get_plain_cross_entropy_of_their_own() -> None:
    """The control's gradients would not be those of each block's own loss on the same noise."""
    net, twin = _net(), _net()
    x, y = _batch()
    rule = IndependentBlocks(net, 3)
    rule.backward(x, y)
    sum(F.cross_entropy(twin.block_scores(x, i), y) for i in range(2)).backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(rule.predict(x), twin.eval()(x).detach())


def test_random_blocks_stay_and_their_head_is_logistic_regression() -> None:
    """The control would train the blocks, move their statistics, or read something else than their encodings."""
    rule, (x, y) = RandomBlocks(_net(), 3), _batch()
    before = {name: value.clone() for name, value in rule.model.state_dict().items()}
    (h,) = rule.features(x).values()
    assert h.shape == (12, 16)
    rule.train()
    rule.backward(x, y)
    error = (rule.top(h).softmax(1) - F.one_hot(y, 3)) / 12
    torch.testing.assert_close(rule.top.weight.grad, (error.T @ h).detach())
    fit(rule, [(x, y)], epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in rule.model.state_dict().items())


def test_no_prop_and_independent_blocks_keep_one_block_each() -> None:
    """The comparison of memory would be one of two ways to free graphs."""
    kept = []
    for rule in (NoProp(_net(4), 3, per_batch=4), IndependentBlocks(_net(4), 3)):
        cost: dict[str, float] = {}
        with counted(cost, rule):
            rule.backward(*_batch())
        kept.append(cost["saved_bytes"])
    assert kept[0] == pytest.approx(kept[1], rel=0.1)
