"""Fishr against per-sample gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.losses.fishr import FishrPenalty, fishr_penalty

from .domain_batches import derivatives, domains, linear


@pytest.mark.parametrize(("classes", "bias"), [(3, True), (1, True), (2, False)])
def test_penalty_is_that_of_the_samples_own_gradients(classes: int, bias: bool) -> None:
    """The closed form would not be the variance over samples of each sample's gradient."""
    (z, y), head = domains(classes=classes), linear(classes=classes, bias=bias)
    variances = []
    for a, b in zip(z, y, strict=True):
        each = torch.stack([derivatives(head, a[i : i + 1], b[i : i + 1])[0] for i in range(len(b))])
        variances.append(each.var(0, correction=0))
    mean = torch.stack(variances).mean(0)
    expected = torch.stack([(v - mean).square().sum() for v in variances])
    assert torch.allclose(fishr_penalty(z, y, head, reduction="none"), expected, rtol=1e-9)
    assert torch.allclose(FishrPenalty()(z, y, head), expected.mean(), rtol=1e-9)


def test_bad_input_is_one_clear_error() -> None:
    """One domain, or a head without a closed form, would give a number that means nothing."""
    (z, y), head = domains(), linear()
    with pytest.raises(InvalidInput, match="1 domain"):
        FishrPenalty()(z[:1], y[:1], head)
    with pytest.raises(InvalidInput, match="Sequential"):
        FishrPenalty()(z, y, nn.Sequential(head))
