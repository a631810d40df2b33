"""The variational auto-encoder against a linear model, whose likelihood is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from assay.errors import InvalidInput
from assay.models.vae import VAE


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _exact(D=4, d=2, s=0.5):
    """Return an affine VAE whose q(z | x) is the posterior of its own linear decoder, and that decoder."""
    vae = VAE((D,), latent=d, depth=0, generator=_seeded()).double()
    W, c = vae.decoder.head.weight.detach(), vae.decoder.head.bias.detach()
    S = torch.linalg.qr(W)  # columns made orthogonal, so that the posterior is diagonal
    W = S.Q * torch.tensor([1.5, 0.8], dtype=torch.float64)
    variance = 1 / (1 + W.square().sum(dim=0) / s**2)
    gain = variance[:, None] * W.T / s**2
    with torch.no_grad():
        vae.decoder.head.weight.copy_(W)
        vae.log_s.fill_(math.log(s))
        vae.encoder.head.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        vae.encoder.head.bias.copy_(torch.cat([-gain @ c, variance.log()]))
    return vae, W, c, s


def test_with_the_true_posterior_the_bound_is_the_likelihood():
    """A term of the bound is missing, doubled or of the wrong sign: then it is not -log N(x; c, W W^T + s^2 I)."""
    vae, W, c, s = _exact()
    x = torch.randn(3, 4, generator=_seeded(1), dtype=torch.float64)
    covariance = W @ W.T + s**2 * torch.eye(4, dtype=torch.float64)
    expected = -MultivariateNormal(c, covariance).log_prob(x)
    with torch.no_grad():
        for i in range(3):
            many = x[i].expand(20_000, 4)
            assert vae.negative_elbo(many, generator=_seeded(i)).item() == pytest.approx(expected[i].item(), abs=0.05)
        vae.encoder.head.bias[0] += 0.5
        many = x[0].expand(20_000, 4)
        assert vae.negative_elbo(many, generator=_seeded()).item() > expected[0].item() + 0.1


def test_the_bound_is_that_of_torchs_distributions():
    """Divergence or likelihood of a deep network differ from torch.distributions at the same draw."""
    vae = VAE((1, 2, 3), latent=2, width=8, generator=_seeded()).double()
    x = torch.randn(5, 1, 2, 3, generator=_seeded(1), dtype=torch.float64)
    mean, log_variance = vae.posterior(x)
    q = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    z = mean + q.base_dist.scale * torch.randn(mean.shape, generator=_seeded(2), dtype=torch.float64)
    likelihood = Independent(Normal(vae.decode(z), vae.log_s.exp()), 3).log_prob(x)
    assert torch.allclose(
        vae.negative_elbo(x, generator=_seeded(2)), (kl_divergence(q, prior) - likelihood).mean(), rtol=1e-12
    )


def test_reconstruction_is_from_the_mean_code():
    """The forward pass draws at random, or loses the shape of the input."""
    vae = VAE((1, 2, 3), latent=2, width=8, generator=_seeded())
    x = torch.randn(5, 1, 2, 3, generator=_seeded(1))
    assert vae(x).shape == x.shape and torch.equal(vae(x), vae.decode(vae.posterior(x)[0]))


def test_the_generator_decides_the_weights():
    """Weights come from the global generator."""
    state = torch.random.get_rng_state()
    first, again = (VAE((6,), 2, 4, generator=_seeded(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(InvalidInput, match="latent"):
        VAE((6,), latent=0)
