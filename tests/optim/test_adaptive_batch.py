"""AdaptiveBatch: a test that never fires changes nothing, one that fires grows the sampler's batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from assay.data.adaptive_batches import AdaptiveBatchSampler
from assay.data.tabular import digits
from assay.errors import InvalidInput
from assay.optim.adaptive_batch import AdaptiveBatch
from assay.optim.batch_tests import NormTest


def _model(dropout):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 10))


def _run(test, epochs=2, dropout=0.0, **options):
    data = digits(train=200, validation=1, test=1).train
    model = _model(dropout)
    sampler = AdaptiveBatchSampler(200, 16)
    adagrad = torch.optim.Adagrad(model.parameters(), lr=0.05)
    adaptive = AdaptiveBatch(adagrad, sampler, test, model, nn.functional.cross_entropy, **options)
    sizes = []
    for _ in range(epochs):
        for x, y in DataLoader(TensorDataset(data.inputs, data.targets), batch_sampler=sampler):
            adaptive.step(x, y)
            sizes.append(len(x))
    return model, sampler, sizes


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_test_that_never_fires_is_a_constant_batch_bit_for_bit(dropout):
    """Testing would change the run that it watches: its weights, or what dropout draws."""
    model, sampler, _ = _run(NormTest(1e6), dropout=dropout)
    data = digits(train=200, validation=1, test=1).train
    plain = _model(dropout)
    adagrad = torch.optim.Adagrad(plain.parameters(), lr=0.05)
    order = AdaptiveBatchSampler(200, 16)
    for _ in range(2):
        # a loader draws a seed of its own for each epoch, as it does in the run with tests
        for x, y in DataLoader(TensorDataset(data.inputs, data.targets), batch_sampler=order):
            adagrad.zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            adagrad.step()
    assert sampler.batch_size == 16
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_strict_test_grows_to_the_whole_set():
    """Noise would never be answered."""
    _, sampler, sizes = _run(NormTest(1e-3))
    assert sizes[0] == 16 and sampler.batch_size == 200 and len(sizes) == 3


def test_interval_and_subsample_limit_what_is_tested():
    """A test between intervals, or of more samples than asked for, costs time and memory for nothing."""
    seen = []

    def watching(gradients, mean):
        seen.append(len(gradients["4.weight"]))
        return 0.0

    _, _, sizes = _run(watching, interval=5, subsample=7)
    assert seen == [7] * (len(sizes) // 5)


def test_part_of_a_batch_is_tested_against_the_mean_of_all_of_it():
    """The mean of a part is longer by the noise of a part, which would cap the batch at subsample / eta^2."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2000, 3, generator=generator), torch.randn(2000, 1, generator=generator)
    suggestions = {}
    for subsample in (None, 40):
        model = nn.Linear(3, 1)
        nn.init.zeros_(model.weight)
        nn.init.constant_(model.bias, 0.2)
        sampler = AdaptiveBatchSampler(4000, 2000)
        sgd = torch.optim.SGD(model.parameters(), lr=0.0)
        adaptive = AdaptiveBatch(sgd, sampler, NormTest(0.5), model, nn.functional.mse_loss, subsample=subsample)
        adaptive.step(x, y)
        suggestions[subsample] = adaptive.suggestion
    # the gradient of half the batch's squared errors, sample by sample: the same sizes by hand
    errors = 2 * (0.2 - y)
    rows = torch.cat([errors * x, errors], 1)
    by_hand = {k: float(rows[:k].var(0).sum() / (0.25 * rows.mean(0).square().sum())) for k in (None, 40)}
    assert suggestions == pytest.approx(by_hand, rel=1e-4)
    assert suggestions[40] > 40 / 0.25


def test_bad_options_and_gradients_are_refused():
    """A diverged run would go on with some batch size; one sample a batch would never be tested."""
    for options in ({"interval": 0}, {"subsample": 1}):
        with pytest.raises(InvalidInput, match="at least"):
            _run(NormTest(), **options)
    model = nn.Linear(2, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidInput, match="batch of 1"):
        AdaptiveBatch(sgd, AdaptiveBatchSampler(4, 1), NormTest(), model, nn.functional.mse_loss)
    adaptive = AdaptiveBatch(sgd, AdaptiveBatchSampler(4, 2), NormTest(), model, nn.functional.mse_loss)
    before = model.weight.detach().clone()
    with pytest.raises(InvalidInput, match="NaN"):
        adaptive.step(torch.tensor([[1.0, math.nan], [1.0, 1.0]]), torch.ones(2, 1))
    assert torch.equal(model.weight, before)


def test_the_count_of_steps_survives_a_restart():
    """A run that goes on would test at other steps than one that was not broken off."""
    model = nn.Linear(2, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    made = [
        AdaptiveBatch(sgd, AdaptiveBatchSampler(9, 2), lambda g, m: 2.5, model, nn.functional.mse_loss, interval=3)
        for _ in range(2)
    ]
    for _ in range(3):
        made[0].step(torch.ones(2, 2), torch.ones(2, 1))
    made[1].load_state_dict(made[0].state_dict())
    assert (made[1].steps, made[1].suggestion) == (3, 2.5)
