from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.stats import norm

from assay.errors import InvalidInput
from assay.nn import GRKANLayer, GroupRational, fit_rational


def seeded(seed=0):
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


# Swish as the official table has it; the signs of its denominator play no role.
OFFICIAL_SWISH = (
    (3.054879741e-07, 0.50000078, 0.24999783, 0.05326628, 0.00580303, 0.000275196),
    (4.11155e-06, 0.10652899, 1.269e-06, 0.00055023),
)


def test_swish_is_the_official_tables():
    """The fit would be another function than the official coefficients', or a worse one."""
    fit = fit_rational("swish")
    np.testing.assert_allclose(fit.numerator, OFFICIAL_SWISH[0], rtol=1e-3, atol=1e-8)
    x = np.linspace(-3, 3, 1001)
    swish = x / (1 + np.exp(-x))

    def error(a, b):
        ratio = np.polynomial.polynomial.polyval(x, a) / np.polynomial.polynomial.polyval(np.abs(x), (1, *b))
        return np.sqrt(np.mean((ratio - swish) ** 2))

    assert error(fit.numerator, fit.denominator) <= error(*OFFICIAL_SWISH)


@pytest.mark.parametrize(("name", "function", "within"), [("gelu", F.gelu, 4e-3), ("swish", F.silu, 2e-6)])
def test_starts_as_the_function_it_is_named_after(name, function, within):
    """A new activation would not be the function that its initialisation promises."""
    x = torch.linspace(-3, 3, 400).view(50, 8)
    assert (GroupRational(8, groups=4, init=name)(x) - function(x)).abs().max() < within


def test_identity_is_exact():
    """The first activation of a GR-KAN would change its input from the start."""
    x = 100 * torch.randn(5, 8, generator=seeded())
    assert torch.equal(GroupRational(8, init="identity")(x), x)


@pytest.mark.parametrize("name", ["gelu", "swish", "identity"])
def test_gain_is_the_integral(name):
    """Weights would not keep the variance; the papers sample 2.3568 for GELU and 2.8178 for swish."""
    fit = fit_rational(name)

    def squared(x):
        above = np.polynomial.polynomial.polyval(x, fit.numerator)
        return (above / np.polynomial.polynomial.polyval(abs(x), (1.0, *fit.denominator))) ** 2 * norm.pdf(x)

    second_moment = quad(squared, -12, 0)[0] + quad(squared, 0, 12)[0]
    assert fit.gain == pytest.approx(1 / second_moment, rel=1e-4)
    sampled = {"gelu": 2.3568, "swish": 2.8178, "identity": 1.0}[name]
    assert fit.gain == pytest.approx(sampled, rel=5e-3)


@pytest.mark.parametrize("init", ["identity", "gelu", "swish"])
def test_layer_keeps_the_variance(init):
    """Deep stacks would blow up or die out at the start."""
    layer = GRKANLayer(512, 256, init=init, generator=seeded())
    y = layer(torch.randn(2000, 512, generator=seeded(1)))
    assert y.square().mean().item() == pytest.approx(1.0, rel=0.05)


def test_a_function_of_ones_own_can_be_fitted():
    """Only the built-in functions would work."""
    fit = fit_rational(np.tanh, (5, 4))
    x = torch.linspace(-3, 3, 100, dtype=torch.float64)[:, None]
    activation = GroupRational(1, groups=1, init=np.tanh).double()
    assert len(fit.numerator) == 6 and (activation(x) - x.tanh()).abs().max() < 1e-5


def test_groups_are_neighbouring_channels():
    """A denominator would act on other channels than its group's."""
    activation = GroupRational(6, groups=3, init="identity")
    with torch.no_grad():
        activation.denominator[1, 0] = 1.0
    x = torch.ones(1, 6)
    torch.testing.assert_close(activation(x), torch.tensor([[1.0, 1.0, 0.5, 0.5, 1.0, 1.0]]))


def test_learns_a_function_that_it_did_not_start_as():
    """The coefficients would not train: identity must be able to become |x|, up to a rational's error."""
    activation = GroupRational(1, groups=1, init="identity")
    optimizer = torch.optim.Adam(activation.parameters(), lr=0.02)
    x = torch.linspace(-2, 2, 200)[:, None]
    for _ in range(400):
        loss = F.mse_loss(activation(x), x.abs())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


def test_leading_shapes_play_no_role():
    """Tokens in a batch would be treated otherwise than rows."""
    layer, x = GRKANLayer(8, 3, generator=seeded()), torch.randn(2, 5, 8, generator=seeded(1))
    torch.testing.assert_close(layer(x).flatten(0, 1), layer(x.flatten(0, 1)))


def test_bad_arguments():
    """Groups that leave channels over would be cut off silently, as in the official code."""
    with pytest.raises(InvalidInput, match="3 groups of 8 channels"):
        GroupRational(8, groups=3)
    with pytest.raises(InvalidInput, match="no initial function 'relu6'"):
        GroupRational(8, init="relu6")
    with pytest.raises(InvalidInput, match="degrees"):
        fit_rational("swish", (0, 4))
    with pytest.raises(InvalidInput, match="expected 8 channels"):
        GroupRational(8)(torch.zeros(2, 16))
