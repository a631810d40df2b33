"""The chain's coefficients against Gaussian algebra, torch.distributions and brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, kl_divergence

from assay.errors import InvalidInput
from assay.rules.denoising import chain_coefficients, class_medoids, prior_divergence, signal_to_noise

retentions = st.tuples(st.floats(1e-4, 0.999), st.floats(1e-4, 0.999)).map(sorted).filter(lambda r: r[0] < r[1])


def _double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(retentions)
def test_a_step_keeps_the_marginals_and_costs_the_difference_of_ratios(ends: list[float]) -> None:
    """The chain would leave the path on which the blocks were trained, or the loss would not be its divergence."""
    before, after = map(_double, ends)
    a, b, c = chain_coefficients(before, after)
    torch.testing.assert_close(a + b * before.sqrt(), after.sqrt())
    torch.testing.assert_close(b**2 * (1 - before) + c, 1 - after)
    gain = signal_to_noise(after) - signal_to_noise(before)
    torch.testing.assert_close(a**2 / c, gain, rtol=1e-8, atol=1e-10)


def test_a_step_is_the_posterior_of_the_joint_normal() -> None:
    """The coefficients would not be those of z_t given z_{t-1}, computed from the joint covariance of both."""
    before, after, u, seen = _double(0.2), _double(0.7), 1.3, -0.4
    keep = (before / after).sqrt()  # z_{t-1} = keep z_t + noise
    covariance = keep * (1 - after)
    slope = covariance / (1 - before)
    mean = after.sqrt() * u + slope * (seen - before.sqrt() * u)
    a, b, c = chain_coefficients(before, after)
    torch.testing.assert_close(a * u + b * seen, mean)
    torch.testing.assert_close(c, 1 - after - slope * covariance)


def test_equal_retentions_are_no_step() -> None:
    """A schedule that stands still would move z."""
    same = _double(0.5)
    assert [float(v) for v in chain_coefficients(same, same)] == [0.0, 1.0, 0.0]


def test_prior_divergence_is_that_of_torch_distributions() -> None:
    """The prior's term would have another constant, sign or factor of d."""
    u = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    retention, eye = _double(0.3), torch.eye(3, dtype=torch.float64)
    q = MultivariateNormal(retention.sqrt() * u, covariance_matrix=(1 - retention) * eye)
    expected = kl_divergence(q, MultivariateNormal(torch.zeros(3, dtype=torch.float64), eye))
    torch.testing.assert_close(prior_divergence(u, retention), expected)


def test_medoids_are_those_of_a_double_loop() -> None:
    """The prototype would be another sample of the class than that of the smallest median distance."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(15, 1, 2, 2, generator=generator), torch.arange(15) % 3
    found = class_medoids(x, y, 3)
    for k in range(3):
        members = [x[i].flatten() for i in range(15) if y[i] == k]
        medians = [sorted(float((p - q).norm()) for q in members)[2] for p in members]
        assert torch.equal(found[k], members[medians.index(min(medians))])


def test_a_class_without_samples_has_no_medoid() -> None:
    """An empty class would fail inside torch."""
    with pytest.raises(InvalidInput, match="class 2 has no sample"):
        class_medoids(torch.zeros(2, 3), torch.tensor([0, 1]), 3)
