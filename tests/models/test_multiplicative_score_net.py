"""The score network: its start, its parametrisation by noise, and what it must refuse."""

from __future__ import annotations

import pytest
import torch

from assay.errors import InvalidInput
from assay.models.multiplicative_score_net import MultiplicativeScoreNet


def made(**options):
    """Return a small network whose last layer is not 0."""
    generator = torch.Generator().manual_seed(0)
    net = MultiplicativeScoreNet((1, 3, 3), width=8, depth=2, generator=generator, **options)
    torch.nn.init.normal_(net.leave.weight, generator=generator)
    return net


def test_scores_are_made_of_the_noise():
    """Scores would not be -1 - eps / (sigma sqrt(t)): then sigma^2 t (h + 1) would not be minus the noise's part of log x."""
    net, x, t = made(sigma=0.5), 1 + torch.rand(4, 1, 3, 3), torch.tensor([0.01, 0.25, 0.5, 1.0])
    h = net(x, t)
    assert h.shape == x.shape
    torch.testing.assert_close((h + 1) * 0.5 * t.sqrt().view(4, 1, 1, 1), -net.noise(x.log(), t))


def test_it_starts_as_the_score_of_independent_log_normals():
    """Before training it would not know the moments it was told: here against torch's log-normal and autograd."""
    net = MultiplicativeScoreNet((5,), 0.8, 8, 1, log_mean=0.3, log_deviation=0.5).double()
    x = (0.5 + torch.rand(4, 5, dtype=torch.float64)).requires_grad_()
    t = torch.tensor([0.01, 0.25, 0.5, 1.0], dtype=torch.float64)
    density = torch.distributions.LogNormal(0.3, (0.25 + 0.64 * t[:, None]).sqrt())
    (s,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(net(x, t), x * s, rtol=1e-6, atol=1e-6)


def test_samples_are_on_their_own_and_time_matters():
    """A sample would see its neighbours or not its time."""
    net, x = made(), torch.rand(3, 1, 3, 3) + 1
    t = torch.tensor([0.2, 0.4, 0.9])
    together = net(x, t)
    torch.testing.assert_close(torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)]), together)
    assert not torch.allclose(net.noise(x.log(), t), net.noise(x.log(), t.flip(0)))


def test_weights_come_from_the_generator():
    """Two networks of one seed would differ, or the global generator be used."""
    before = torch.get_rng_state()
    first, second = made(), made()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options", [{"width": 0}, {"depth": -1}, {"time_features": 5}, {"sigma": 0.0}, {"log_deviation": 0.0}]
)
def test_sizes_out_of_range_are_refused(options):
    """A bad size would fail later and less clearly."""
    with pytest.raises(InvalidInput):
        MultiplicativeScoreNet((4,), **options)
