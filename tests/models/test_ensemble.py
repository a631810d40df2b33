"""Ensemble: every member is the network it would be alone, trained and untrained."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.models.ensemble import Ensemble, member_orders
from assay.models.mlp import MLP
from assay.models.transformer_lm import TransformerLM

M, B = 4, 6


def member(generator):
    """One member."""
    return MLP((1, 2, 2), 3, width=5, depth=2, generator=generator)


def ensemble(seed=0):
    """Four small networks in float64."""
    return Ensemble(member, M, generator=torch.Generator().manual_seed(seed)).double()


def inputs(*shape, seed=1):
    """Standard normal."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_members_are_the_networks_alone():
    """A member's scores would depend on another's weights or inputs, or on the order of stacking."""
    nets, x = ensemble(), inputs(B, 1, 2, 2)
    expected = torch.stack([nets.member(i)(x) for i in range(M)])
    torch.testing.assert_close(nets.member_scores(x), expected)
    torch.testing.assert_close(nets(x).exp(), expected.softmax(-1).mean(0))
    own = inputs(M, B, 1, 2, 2)
    expected = torch.stack([nets.member(i)(own[i]) for i in range(M)])
    torch.testing.assert_close(nets.member_scores(own, shared=False), expected)


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, lr=0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9)])
def test_training_in_one_batch_is_training_one_by_one(make):
    """Members would feel each other through the loss or the optimizer."""
    nets = ensemble()
    alone = [nets.member(i) for i in range(M)]
    optimizers, together = [make(list(net.parameters())) for net in alone], make(list(nets.parameters()))
    for step in range(5):
        x, y = inputs(M, B, 1, 2, 2, seed=step), torch.arange(M * B).view(M, B) % 3
        together.zero_grad()
        loss = F.cross_entropy(nets.member_scores(x, shared=False).flatten(0, 1), y.flatten()) * M
        loss.backward()
        together.step()
        for net, optimizer, x_one, y_one in zip(alone, optimizers, x, y, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x_one), y_one).backward()
            optimizer.step()
    for index, net in enumerate(alone):
        for name, parameter in nets.members.named_parameters():
            torch.testing.assert_close(parameter[index], net.get_parameter(name))


def test_members_start_apart_and_repeatably():
    """Members would share initial weights (no variance), or come from the global generator."""
    before = torch.get_rng_state()
    first, second, other = ensemble(), ensemble(), ensemble(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    weights = first.members.block1[0].weight
    assert torch.equal(weights, second.members.block1[0].weight)
    assert not torch.equal(weights, other.members.block1[0].weight)
    assert all(not torch.equal(weights[i], weights[j]) for i in range(M) for j in range(i))


def test_state_and_copies():
    """A saved ensemble would come back as another one."""
    nets, x = ensemble(), inputs(B, 1, 2, 2)
    other = ensemble(seed=5)
    other.load_state_dict(nets.state_dict())
    for copied in (other, copy.deepcopy(nets), pickle.loads(pickle.dumps(nets))):
        assert torch.equal(copied(x), nets(x))
    assert "members.block1.0.weight" in nets.state_dict()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # attention has no batching rule
def test_tied_weights_stay_tied():
    """A tied weight would be stacked once and left as it was in its other place."""
    nets = Ensemble(lambda g: TransformerLM((4,), 7, 8, 1, tie_weights=True, generator=g), M)
    x = torch.arange(8).view(2, 4) % 7
    assert nets.members.head.weight is nets.members.embedding.token
    expected = torch.stack([nets.member(i)(x) for i in range(M)])
    torch.testing.assert_close(nets.member_scores(x), expected)


def test_dropout_follows_the_mode_and_differs_between_members():
    """Evaluation would be noisy, or members drop the same units."""
    nets = Ensemble(lambda generator: nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 2, bias=False)), M)
    with torch.no_grad():
        nets.members[1].weight.fill_(1.0)
    x = torch.ones(1, 50)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert nets.member_scores(x)[:, 0, 0].unique().numel() > 1
        assert torch.equal(nets.eval().member_scores(x), torch.full((M, 1, 2), 50.0))


@pytest.mark.parametrize("bootstrap", [False, True])
def test_orders_are_each_members_own(bootstrap):
    """Members would see the data in one order, or an epoch miss samples, or a bootstrap see each once."""
    orders = member_orders(200, M, torch.Generator().manual_seed(0), bootstrap=bootstrap)
    assert orders.shape == (M, 200) and len({tuple(row.tolist()) for row in orders}) == M
    distinct = torch.tensor([row.unique().numel() for row in orders])
    assert (distinct < 150).all() if bootstrap else (distinct == 200).all()  # 1 - 1/e of 200 are 126


def test_bad_ensembles_are_refused():
    """One member has no variance; running statistics would be mixed."""
    with pytest.raises(InvalidInput, match="at least 2"):
        Ensemble(member, 1)
    with pytest.raises(InvalidInput, match="running_mean"):
        Ensemble(lambda generator: nn.Sequential(nn.BatchNorm1d(3)), 2)
    with pytest.raises(InvalidInput, match="a batch for each of 4"):
        ensemble().member_scores(inputs(3, B, 1, 2, 2), shared=False)
