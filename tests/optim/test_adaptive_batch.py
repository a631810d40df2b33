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
from assay.models.mlp import MLP
from assay.optim.adaptive_batch import AdaptiveBatch
from assay.optim.batch_tests import NormTest


def _run(test, epochs=2, **options):
    data = digits(train=200, validation=1, test=1).train
    model = MLP((1, 8, 8), 10, width=8, depth=1, generator=torch.Generator().manual_seed(0))
    sampler = AdaptiveBatchSampler(200, 16)
    adagrad = torch.optim.Adagrad(model.parameters(), lr=0.05)
    adaptive = AdaptiveBatch(adagrad, sampler, test, model, nn.functional.cross_entropy, **options)
    sizes = []
    for _ in range(epochs):
        for x, y in DataLoader(TensorDataset(data.inputs, data.targets), batch_sampler=sampler):
            adaptive.step(x, y)
            sizes.append(len(x))
    return model, sampler, sizes


def test_a_test_that_never_fires_is_a_constant_batch_bit_for_bit():
    """Testing would change the run that it watches."""
    model, sampler, _ = _run(NormTest(1e6))
    plain = MLP((1, 8, 8), 10, width=8, depth=1, generator=torch.Generator().manual_seed(0))
    adagrad = torch.optim.Adagrad(plain.parameters(), lr=0.05)
    data = digits(train=200, validation=1, test=1).train
    order = AdaptiveBatchSampler(200, 16)
    for _ in range(2):
        for batch in order:
            adagrad.zero_grad()
            nn.functional.cross_entropy(plain(data.inputs[batch]), data.targets[batch]).backward()
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

    def watching(gradients):
        seen.append(len(gradients["head.weight"]))
        return 0.0

    _, _, sizes = _run(watching, interval=5, subsample=7)
    assert seen == [7] * (len(sizes) // 5)


def test_bad_options_and_gradients_are_refused():
    """A diverged run would go on with some batch size."""
    for options in ({"interval": 0}, {"subsample": 1}):
        with pytest.raises(InvalidInput, match="at least"):
            _run(NormTest(), **options)
    with pytest.raises(InvalidInput, match="NaN"):
        _run(lambda gradients: math.nan)
