"""Asymmetry of a Jacobian against its parts formed explicitly, and on networks whose weights are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.models.relaxation_net import RelaxationNet
from assay.probes.jacobian_symmetry import JacobianAsymmetry, jacobian_asymmetry
from assay.rules.equilibrium_propagation import EquilibriumPropagation
from assay.watch import Watch


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _net(**options: object) -> RelaxationNet:
    return RelaxationNet((5,), 3, **({"width": 8, "generator": torch.Generator().manual_seed(0)} | options))


DATA = (_randn(40, 5).float(), torch.arange(40) % 3)


def test_value_is_the_share_of_the_antisymmetric_part() -> None:
    """|A| / (|S| + |A|) of the Jacobian at each sample's own state."""
    weight, state = _randn(6, 6), _randn(3, 6, seed=1)

    def field(s: Tensor) -> Tensor:
        return torch.sin(s @ weight.T)

    found = jacobian_asymmetry(field, state)
    for value, s in zip(found, state, strict=True):
        jacobian = torch.func.jacrev(lambda v: field(v[None])[0])(s)
        a, b = (jacobian - jacobian.T).norm(), (jacobian + jacobian.T).norm()
        assert float(value) == pytest.approx(float(a / (a + b)))


def test_noise_estimates_the_exact_value() -> None:
    """Noise in place of unit vectors would measure something else."""
    weight, state = _randn(30, 30), _randn(1, 30, seed=1)
    generator = torch.Generator().manual_seed(0)
    estimate = jacobian_asymmetry(lambda s: s @ weight.T, state, 2000, generator)
    assert float(estimate) == pytest.approx(float(jacobian_asymmetry(lambda s: s @ weight.T, state)), abs=0.02)


def test_it_tells_symmetric_from_independent_weights_and_one_way_connections() -> None:
    """0 with tied weights; 1/2 where no connection has a partner, whose trace of J J is 0."""

    def measured(**options: object) -> float:
        return Watch(_net(**options), [JacobianAsymmetry(samples=None)], DATA).measure(0)["jacobian_asymmetry"]

    assert measured(feedback_angle=0.0) < 1e-3
    assert measured(connections="loop") == pytest.approx(0.5)
    assert 0.3 < measured() < 0.6


def test_residual_tells_unsettled_dynamics() -> None:
    """A network that flips between two states would look settled."""
    probe = JacobianAsymmetry(samples=5)
    calm = Watch(_net(), [probe], DATA).measure(0)["relaxation_residual"]
    wild = Watch(_net(gain=30.0, damping=1.0), [probe], DATA).measure(0)["relaxation_residual"]
    assert calm < 1e-3 and wild > 0.1


def test_it_leaves_no_trace_under_its_rule() -> None:
    """A measurement in training would change gradients, the rule's noise or the weights."""
    rule = EquilibriumPropagation(_net(), homeostasis=1.0)
    rule.backward(*DATA)
    before = [p.grad.clone() for p in rule.parameters() if p.grad is not None]
    state = {k: v.clone() for k, v in rule.state_dict().items()}
    watch = Watch(rule.model, ["jacobian-asymmetry", "error-alignment"], DATA, rule=rule)
    first, second = watch.measure(0), watch.measure(1)
    assert first == second and all(math.isfinite(v) for v in first.values())
    assert all(torch.equal(a, p.grad) for a, p in zip(before, rule.parameters(), strict=True))
    assert all(torch.equal(v, rule.state_dict()[k]) for k, v in state.items())


def test_refuses_no_samples() -> None:
    """A mean over nothing would be NaN without a reason."""
    for options in ({"samples": 0}, {"most": 0}):
        with pytest.raises(InvalidInput):
            JacobianAsymmetry(**options)
