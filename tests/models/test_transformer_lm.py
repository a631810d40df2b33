"""TransformerLM: causal, as many parameters as counted by hand, tied or not, any activation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput, UnknownName
from assay.models.transformer_lm import TransformerLM
from assay.nn.top_k import TopK


def model(**options):
    """A small one whose weights come from a generator."""
    options = {"width": 16, "depth": 2, "heads": 4, "generator": torch.Generator().manual_seed(0)} | options
    return TransformerLM((12,), 11, **options)


def tokens(samples=3, length=12):
    """Random tokens."""
    return torch.randint(11, (samples, length), generator=torch.Generator().manual_seed(1))


def test_no_position_sees_a_later_one():
    """A score would depend on the token that it is to predict, and every loss be worthless."""
    lm, x = model(), tokens()
    changed = x.clone()
    changed[:, 7] = (x[:, 7] + 1) % 11
    torch.testing.assert_close(lm(changed)[:, :7], lm(x)[:, :7])
    assert not torch.allclose(lm(changed)[:, 7:], lm(x)[:, 7:])
    torch.testing.assert_close(lm(x[:, :5]), lm(x)[:, :5])


def test_equals_the_equations_written_out():
    """A norm, a residual connection or the attention's scale would be missing."""
    lm, x = model(depth=1, heads=1, activation="relu").double(), tokens(1)
    block = lm.block1
    h = lm.embedding.token[x[0]] + lm.embedding.position
    q, k, v = block.attention.projection(F.layer_norm(h, (16,))).split(16, dim=-1)
    weights = (q @ k.T / math.sqrt(16)).masked_fill(torch.ones(12, 12).triu(1).bool(), -math.inf).softmax(-1)
    h = h + block.attention.output(weights @ v)
    h = h + block.mlp[2](block.mlp[0](F.layer_norm(h, (16,))).relu())
    torch.testing.assert_close(lm(x)[0], F.layer_norm(h, (16,)) @ lm.head.weight.T)


def test_parameters_as_counted_by_hand():
    """A layer would have another size than said, or tied weights not be one parameter."""
    d, V, T, hidden = 16, 11, 12, 24
    block = 4 * d * d + 4 * d + 2 * d * hidden + d + hidden + 4 * d
    expected = 2 * block + V * d + T * d + 2 * d
    assert sum(p.numel() for p in model(hidden=hidden, tie_weights=True).parameters()) == expected
    assert sum(p.numel() for p in model(hidden=hidden).parameters()) == expected + V * d


def test_tied_weights_are_trained_as_one():
    """The embedding would get only one of its two gradients."""
    lm = model(tie_weights=True)
    assert lm.head.weight is lm.embedding.token
    F.cross_entropy(lm(tokens()).flatten(0, 1), tokens().flatten()).backward()
    assert lm.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("top-k(k=3)", TopK), (nn.Mish, nn.Mish)])
def test_activation_by_name_or_callable(name, kind):
    """The MLPs would have another activation than asked for."""
    assert all(isinstance(getattr(model(activation=name), block).mlp[1], kind) for block in ("block1", "block2"))


def test_weights_come_from_the_generator():
    """Two models of one seed would differ, or the global generator be drawn from."""
    before = torch.get_rng_state()
    assert torch.equal(model()(tokens()), model()(tokens()))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments_are_refused():
    """Wrong sizes would end in an error from deep inside, or in none."""
    for options in ({"heads": 3}, {"depth": 0}, {"hidden": 0}):
        with pytest.raises(InvalidInput, match="heads that divide"):
            model(**options)
    with pytest.raises(InvalidInput, match=r"input_shape \(context,\)"):
        TransformerLM((1, 8, 8), 10)
    with pytest.raises(UnknownName):
        model(activation="no-such")
    with pytest.raises(InvalidInput, match="at most 12"):
        model()(tokens(length=13))
    with pytest.raises(InvalidInput, match="integer tokens"):
        model()(torch.zeros(2, 12))
