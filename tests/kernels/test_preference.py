from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from assay.errors import InvalidInput
from assay.kernels.preference import (
    LogProbability,
    cpo_loss,
    dpo_loss,
    kto_loss,
    linear_log_probability,
    orpo_loss,
    simpo_loss,
)

PAIRS, LENGTH, FEATURES, WORDS = 3, 7, 5, 13


def head(dtype=torch.float64, words=WORDS, seed=0):
    """Hidden states of chosen and then rejected sequences, a head, labels with ignored ones; a reference's too."""
    generator = torch.Generator().manual_seed(seed)
    states, reference = torch.randn(2, 2 * PAIRS, LENGTH, FEATURES, generator=generator, dtype=dtype)
    weight, reference_weight = torch.randn(2, words, FEATURES, generator=generator, dtype=dtype)
    labels = torch.randint(words, (2 * PAIRS, LENGTH), generator=generator)
    labels[:, :2] = -100
    labels[1, 5:] = -100
    return states.requires_grad_(), weight.requires_grad_(), labels, reference, reference_weight


def plain(states, weight, labels):
    """Sums and averages of the log-probabilities, with all logits, one token at a time."""
    table = torch.log_softmax(states @ weight.T, -1)
    sums, counts = [], []
    for n in range(labels.shape[0]):
        kept = [t for t in range(labels.shape[1]) if labels[n, t] != -100]
        sums.append(sum(table[n, t, labels[n, t]] for t in kept))
        counts.append(len(kept))
    return torch.stack(sums), torch.tensor(counts)


def sigmoid(x):
    """The logistic function, spelled out."""
    return 1 / (1 + torch.exp(-x))


def plain_dpo(sums, counts, reference, smoothing=0.0):
    """Eq. (7) of DPO, with label smoothing."""
    margin = 0.3 * ((sums - reference)[:PAIRS] - (sums - reference)[PAIRS:])
    return -((1 - smoothing) * sigmoid(margin).log() + smoothing * sigmoid(-margin).log()).mean()


def plain_cpo(sums, counts, reference):
    """Eq. (6) of CPO."""
    preference = -sigmoid(0.3 * (sums[:PAIRS] - sums[PAIRS:])).log().mean()
    return preference - 0.7 * sums[:PAIRS].sum() / counts[:PAIRS].sum()


def plain_simpo(sums, counts, reference):
    """Eq. (6) of SimPO."""
    averages = sums / counts
    return -sigmoid(2.0 * averages[:PAIRS] - 2.0 * averages[PAIRS:] - 0.5).log().mean()


def plain_orpo(sums, counts, reference):
    """Eqs. (4) to (7) of ORPO."""
    probability = (sums / counts).exp()
    odds = probability / (1 - probability)
    return -sums[:PAIRS].sum() / counts[:PAIRS].sum() - 0.4 * sigmoid((odds[:PAIRS] / odds[PAIRS:]).log()).log().mean()


DESIRABLE = torch.tensor([True, False, True, True, False, False])


def plain_kto(sums, counts, reference):
    """Eq. (8) of KTO, one sequence after the other."""
    total = 0.0
    for reward, good in zip(sums - reference, DESIRABLE, strict=True):
        value = sigmoid(0.3 * (reward - 0.6)) if good else sigmoid(0.3 * (0.6 - reward))
        total = total + (1.5 if good else 0.8) * (1 - value)
    return total / len(DESIRABLE)


LOSSES = {
    "dpo": (lambda p, r: dpo_loss(p[:PAIRS], p[PAIRS:], r[:PAIRS], r[PAIRS:], beta=0.3), plain_dpo),
    "dpo-smoothed": (
        lambda p, r: dpo_loss(p[:PAIRS], p[PAIRS:], r[:PAIRS], r[PAIRS:], beta=0.3, label_smoothing=0.2),
        lambda *arguments: plain_dpo(*arguments, 0.2),
    ),
    "cpo": (lambda p, r: cpo_loss(p[:PAIRS], p[PAIRS:], beta=0.3, alpha=0.7), plain_cpo),
    "simpo": (lambda p, r: simpo_loss(p[:PAIRS], p[PAIRS:], beta=2.0, gamma=0.5), plain_simpo),
    "orpo": (lambda p, r: orpo_loss(p[:PAIRS], p[PAIRS:], weight=0.4), plain_orpo),
    "kto": (
        lambda p, r: kto_loss(p, r, DESIRABLE, 0.6, beta=0.3, desirable_weight=1.5, undesirable_weight=0.8),
        plain_kto,
    ),
}


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_definition(name, chunk_size):
    """A chunked preference loss would differ from its paper's formula over all logits, in value or gradient."""
    states, weight, labels, reference, reference_weight = head()
    loss, definition = LOSSES[name]
    with torch.no_grad():
        base = linear_log_probability(reference, reference_weight, labels, chunk_size=chunk_size)
        plain_base, _ = plain(reference, reference_weight, labels)
    torch.testing.assert_close(base.total, plain_base, rtol=1e-12, atol=1e-12)
    found = loss(linear_log_probability(states, weight, labels, chunk_size=chunk_size), base)
    expected = definition(*plain(states, weight, labels), plain_base)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(value, (states, weight)) for value in (found, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_reference_points_get_no_gradient():
    """The reference model, or the estimate of the divergence, would be trained."""
    states, weight, labels, reference, _ = head()
    divergence = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    policy = linear_log_probability(states, weight, labels)
    base = linear_log_probability(reference.requires_grad_(), weight.detach(), labels)
    total = kto_loss(policy, base, DESIRABLE, divergence) + dpo_loss(policy[:3], policy[3:], base[:3], base[3:])
    assert torch.autograd.grad(total, (reference, divergence), allow_unused=True) == (None, None)


def test_limits():
    """At equal policies DPO is log 2 and KTO one half; a negative divergence would count."""
    total = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    same = LogProbability(total, torch.full((4,), 5))
    assert float(dpo_loss(same[:2], same[2:], same[:2], same[2:])) == pytest.approx(math.log(2))
    desirable = torch.tensor([True, False, True, False])
    assert float(kto_loss(same, same, desirable, 0.0)) == pytest.approx(0.5)
    assert float(kto_loss(same, same, desirable, -3.0)) == pytest.approx(0.5)
    assert float(cpo_loss(same[:2], same[2:], alpha=0.0)) == pytest.approx(
        float(simpo_loss(*(replace(s, tokens=torch.ones(2)) for s in (same[:2], same[2:])), beta=0.1, gamma=0.0))
    )


@settings(max_examples=50, deadline=None)
@given(st.floats(-60, -1e-7), st.floats(-60, -1e-7))
def test_orpo_is_exact_for_probabilities_near_zero_and_one(chosen, rejected):
    """1 - P would be rounded away, and loss or gradient be infinite or nan."""
    pair = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected)]
    one = torch.ones(1)
    loss = orpo_loss(*(LogProbability(value, one) for value in pair), weight=1.0)
    log_odds = [value - math.log(-math.expm1(value)) for value in (chosen, rejected)]
    expected = -chosen + math.log1p(math.exp(-abs(log_odds[0] - log_odds[1]))) + max(0.0, log_odds[1] - log_odds[0])
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, pair))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_losses(dtype):
    """Sums over hundreds of tokens would be rounded to two digits."""
    states, weight, labels, *_ = head(dtype)
    policy = linear_log_probability(states, weight, labels)
    assert policy.total.dtype == torch.float32
    exact, _ = plain(states.detach().double(), weight.detach().double(), labels)
    torch.testing.assert_close(policy.total.double(), exact, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-2)
    simpo_loss(policy[:PAIRS], policy[PAIRS:]).backward()
    assert weight.grad.dtype == dtype


class Largest(TorchDispatchMode):
    """Notes the largest floating-point result of any operation."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run and look."""
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_has_the_size_of_a_pairs_logits():
    """The memory would still grow with the sequences' length."""
    states, weight, labels, *_ = head(torch.float32, words=512)
    with Largest() as seen:
        policy = linear_log_probability(states, weight, labels, chunk_size=3)
        orpo_loss(policy[:PAIRS], policy[PAIRS:]).backward()
    assert seen.numel <= 3 * 512 + weight.numel()
    assert seen.numel < 2 * LENGTH * 512


def test_compiles_as_one_graph():
    """torch.compile would break at the head's operator or at the record of log-probabilities."""
    states, weight, labels, *_ = head()

    def loss(states, weight):
        policy = linear_log_probability(states, weight, labels)
        return orpo_loss(policy[:PAIRS], policy[PAIRS:])

    torch._dynamo.reset()
    found = torch.compile(loss, backend="aot_eager", fullgraph=True)(states, weight)
    torch.testing.assert_close(found, loss(states, weight))
    torch.testing.assert_close(
        torch.autograd.grad(found, weight), torch.autograd.grad(loss(states, weight), weight), rtol=1e-10, atol=0
    )
    torch._dynamo.reset()


def test_bad_calls_raise_one_clear_error():
    """Unequal numbers of sequences would be broadcast, and options out of range give a loss without meaning."""
    states, weight, labels, *_ = head()
    policy = linear_log_probability(states, weight, labels)
    with pytest.raises(InvalidInput, match=r"target must have shape \(N, T\)"):
        linear_log_probability(states[0], weight, labels[0])
    with pytest.raises(InvalidInput, match="label 13 is outside"):
        linear_log_probability(states, weight, labels.masked_fill(labels == labels.max(), 13))
    with pytest.raises(InvalidInput, match="equally many sequences"):
        simpo_loss(policy[:1], policy[1:])
    with pytest.raises(InvalidInput, match="equally many sequences"):
        simpo_loss(policy[:0], policy[:0])
    with pytest.raises(InvalidInput, match=r"beta must be finite and above 0, not 0\.0"):
        cpo_loss(policy, policy, beta=0.0)
    with pytest.raises(InvalidInput, match="weight must be finite and at least 0"):
        orpo_loss(policy, policy, weight=-1.0)
    with pytest.raises(InvalidInput, match=r"label_smoothing must be in \[0, 0.5\)"):
        dpo_loss(policy, policy, policy, policy, label_smoothing=0.5)
    with pytest.raises(InvalidInput, match="desirable must be bool"):
        kto_loss(policy, policy, DESIRABLE.float(), 0.0)


def test_a_sequence_without_tokens_has_no_average():
    """An empty answer would count as one of probability 1."""
    states, weight, labels, *_ = head()
    policy = linear_log_probability(states, weight, torch.full_like(labels, -100))
    assert policy.total.abs().sum() == 0
    assert policy.average.isnan().all()


def test_token_log_probabilities_agree_with_cross_entropy():
    """The total would not be minus the summed cross-entropy, nor the likelihood loss its mean."""
    states, weight, labels, *_ = head()
    policy = linear_log_probability(states, weight, labels)
    logits = (states @ weight.T).flatten(0, 1)
    torch.testing.assert_close(policy.negative_log_likelihood, F.cross_entropy(logits, labels.flatten()))
