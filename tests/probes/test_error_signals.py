"""Alignment of error signals against torch's cosine, and in the limits where it must be 1 or 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.models.relaxation_net import RelaxationNet
from assay.probes.error_signals import ErrorAlignment, error_alignment
from assay.rules.equilibrium_propagation import EquilibriumPropagation
from assay.watch import Watch


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DATA = (_randn(40, 5), torch.arange(40) % 3)


def _measured(net: dict, batch_size: int = 512, most: int = 256, **options: object) -> dict[str, float]:
    given = {"width": 8, "gain": 0.5, "generator": torch.Generator().manual_seed(0)} | net
    rule = EquilibriumPropagation(RelaxationNet((5,), 3, **given), points=0, **options)
    return Watch(rule.model, [ErrorAlignment(most)], DATA, rule=rule, batch_size=batch_size).measure(0)


def test_cosine_is_torchs_and_survives_tiny_signals() -> None:
    """Errors of 1e-30, as deep groups have, would underflow to 0."""
    a, b = _randn(6, 2, 4), _randn(6, 2, 4, seed=1)
    expected = torch.cosine_similarity(a.flatten(1).double(), b.flatten(1).double())
    torch.testing.assert_close(error_alignment(a, b), expected)
    torch.testing.assert_close(error_alignment(1e-30 * a, 1e30 * b), expected)
    assert error_alignment(torch.zeros_like(a), b).tolist() == [0.0] * 6


def test_symmetric_weights_align_every_group_and_the_exact_rule_itself() -> None:
    """1 where the rule's signals are the gradient's, in every group."""
    for values in (_measured({"feedback_angle": 0.0}), _measured({}, estimator="recurrent-backprop")):
        assert set(values) == {"error_alignment", *(f"error_alignment/{g}" for g in ("l1", "l2", "out"))}
        assert all(v == pytest.approx(1.0, abs=1e-3) for v in values.values())


def test_groups_that_hear_nothing_count_as_zero() -> None:
    """Without feedback hidden groups get no signal at all: no alignment, and no NaN."""
    values = _measured({"connections": "feedforward"})
    assert values["error_alignment/l1"] == values["error_alignment/l2"] == 0.0
    assert values["error_alignment/out"] == pytest.approx(1.0)


def test_value_is_a_mean_over_samples() -> None:
    """Batches would be weighted otherwise than their samples, or more samples be read than asked for."""
    whole = _measured({})
    for size in (1, 7):
        assert _measured({}, batch_size=size) == pytest.approx(whole, rel=1e-4)
    assert _measured({}, batch_size=7, most=10) == pytest.approx(_measured({}, batch_size=5, most=10), rel=1e-4)
    assert _measured({}, most=10)["error_alignment/l1"] != pytest.approx(whole["error_alignment/l1"], rel=1e-4)
    with pytest.raises(InvalidInput):
        ErrorAlignment(0)
