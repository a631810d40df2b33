"""TrAct layers against ridge regression on the activations, patches cut out by hand, one-hot rows, and limits."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn import first_layers
from assay.nn.first_layers import TrActConv2d, TrActEmbedding, TrActLinear, tract_gradient

DOUBLE = torch.float64


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def _ridge_regression(x: Tensor, g: Tensor, lam: float) -> Tensor:
    """The dW, for a step of -1, that minimises ||x dW^T + b g||^2 + lam b ||dW||^2: least squares with extra rows."""
    b, n = x.shape
    rows = torch.cat([x, math.sqrt(lam * b) * torch.eye(n, dtype=x.dtype)])
    wanted = torch.cat([-b * g, torch.zeros(n, g.shape[1], dtype=x.dtype)])
    return -torch.linalg.lstsq(rows, wanted).solution.T


def _gradients(layer: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Return the output and all gradients; an optimizer sees those of the parameters."""
    x = x.clone().requires_grad_(x.is_floating_point())
    sources = dict(layer.named_parameters()) | ({"input": x} if x.requires_grad else {})
    y = layer(x)
    found = torch.autograd.grad(y, list(sources.values()), upstream)
    return dict(zip(sources, found, strict=True)) | {"output": y.detach()}


def _plain(layer: nn.Module) -> nn.Module:
    """Return a copy that runs torch's own forward pass."""
    plain = copy.deepcopy(layer)
    plain.__class__ = type(layer).__mro__[1]
    assert type(plain).__module__.startswith("torch.nn")
    return plain


@pytest.mark.parametrize("b", [3, 7, 8, 30])
def test_linear_gradient_is_ridge_regression_on_the_activations(b: int) -> None:
    """The weights would not move the pre-activations as the paper asks, in either of the two forms of the inverse."""
    layer = TrActLinear(7, 4, lam=0.3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    x, upstream = _normal(b, 7), _normal(b, 4, seed=2)
    found = _gradients(layer, x, upstream)["weight"]
    torch.testing.assert_close(found, _ridge_regression(x, upstream, 0.3), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tract_gradient(x, upstream, 0.3), found, rtol=1e-12, atol=1e-14)


def test_leading_dimensions_are_rows() -> None:
    """Tokens of a sequence would be averaged otherwise than examples."""
    layer = TrActLinear(5, 3, dtype=DOUBLE)
    x, upstream = _normal(2, 4, 5), _normal(2, 4, 3, seed=1)
    found = _gradients(layer, x, upstream)["weight"]
    torch.testing.assert_close(found, _ridge_regression(x.view(8, 5), upstream.view(8, 3), 0.1))


CONVOLUTIONS = {
    "plain": TrActConv2d(3, 4, 3, dtype=DOUBLE),
    "strided": TrActConv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), bias=False, dtype=DOUBLE),
    "dilated": TrActConv2d(2, 4, 3, padding=2, dilation=2, dtype=DOUBLE),
    "reflected": TrActConv2d(2, 4, 3, padding=1, padding_mode="reflect", dtype=DOUBLE),
    "circular": TrActConv2d(2, 4, 3, padding=(1, 2), padding_mode="circular", dtype=DOUBLE),
    "same": TrActConv2d(2, 4, 4, padding="same", dtype=DOUBLE),
    "groups": TrActConv2d(4, 6, 3, padding=1, groups=2, dtype=DOUBLE),
}
MODES = {"zeros": "constant", "reflect": "reflect", "circular": "wrap"}


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Cut patches (B, H', W', C, kh, kw) out of images padded by NumPy."""
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(int(p), int(p)) for p in layer.padding]
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), *sides], mode=MODES[layer.padding_mode])
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    starts = [range(0, size - s + 1, step) for size, s, step in zip(padded.shape[2:], span, stride, strict=True)]
    cut = [
        padded[:, :, i : i + span[0] : dilation[0], j : j + span[1] : dilation[1]]
        for i, j in itertools.product(*starts)
    ]
    return torch.tensor(np.stack(cut, 1)).unflatten(1, (len(starts[0]), len(starts[1])))


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_the_linear_form_on_patches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stride, padding, dilation or groups would enter the moment otherwise than the convolution itself."""
    layer = CONVOLUTIONS[name]
    x = _normal(5, layer.in_channels, 7, 6)
    monkeypatch.setattr(first_layers, "PATCH_ENTRIES", 2000)  # two images at a time
    upstream = _normal(*layer(x).shape, seed=3)
    found = _gradients(layer, x, upstream)["weight"]
    patches = _patches(layer, x)
    per_group = layer.in_channels // layer.groups
    for group in range(layer.groups):
        rows = patches[..., group * per_group : (group + 1) * per_group, :, :].flatten(3).flatten(0, 2)
        own = slice(group * layer.out_channels // layer.groups, (group + 1) * layer.out_channels // layer.groups)
        g = upstream[:, own].movedim(1, -1).flatten(0, 2)
        expected = _ridge_regression(rows, g, 0.1).view_as(found[own])
        torch.testing.assert_close(found[own], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding_is_the_linear_form_on_one_hot_rows(padding_idx: int | None) -> None:
    """Tokens would be scaled by something else than their shares, or padding would count."""
    layer = TrActEmbedding(6, 3, padding_idx, lam=0.2, dtype=DOUBLE)
    x = torch.tensor([[0, 0, 2, 5], [5, 0, 1, 2]])
    upstream = _normal(2, 4, 3)
    found = _gradients(layer, x, upstream)["weight"]
    kept = x.flatten() != padding_idx if padding_idx is not None else torch.ones(8, dtype=torch.bool)
    rows = F.one_hot(x.flatten()[kept], 6).double()
    expected = _ridge_regression(rows, upstream.view(8, 3)[kept], 0.2).T
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


LAYERS = {
    "linear": (lambda: TrActLinear(7, 4), _normal(3, 7, dtype=torch.float32)),
    "convolution": (lambda: TrActConv2d(2, 4, 3, padding=1), _normal(3, 2, 5, 5, dtype=torch.float32)),
    "one-image": (lambda: TrActConv2d(2, 4, 3), _normal(2, 5, 5, dtype=torch.float32)),
    "embedding": (lambda: TrActEmbedding(7, 4), torch.tensor([[1, 2, 2]])),
}


@pytest.mark.parametrize("name", LAYERS)
def test_everything_but_the_weights_gradient_is_torchs(name: str) -> None:
    """Outputs, or what the rest of the network and the input get, would change; all of it in eval mode."""
    make, x = LAYERS[name]
    layer = make()
    upstream = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(0))
    found, expected = _gradients(layer, x, upstream), _gradients(_plain(layer), x, upstream)
    assert not torch.allclose(found.pop("weight"), expected["weight"])
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
    for key, value in _gradients(layer.eval(), x, upstream).items():
        assert torch.equal(value, expected[key]), f"{key} in eval mode"
    layer.train().weight.requires_grad_(False)
    assert torch.equal(layer(x), expected["output"])


def test_limits_of_the_ridge() -> None:
    """A large ridge must give the ordinary gradient over lam; orthonormal inputs the gradient over 1 + lam."""
    x, g = _normal(20, 5), _normal(20, 3, seed=1)
    torch.testing.assert_close(1e9 * tract_gradient(x, g, 1e9), g.T @ x, rtol=1e-7, atol=1e-7)
    orthonormal = torch.linalg.qr(x).Q * math.sqrt(20)
    torch.testing.assert_close(tract_gradient(orthonormal, g, 0.25), g.T @ orthonormal / 1.25)


def test_without_ridge_a_step_moves_activations_along_their_gradient() -> None:
    """SGD would not do to z what the derivation asks for: z - lr b g, each example's own gradient of a mean loss."""
    layer = TrActLinear(4, 3, bias=False, lam=1e-9, dtype=DOUBLE)
    x, targets = _normal(4, 4), _normal(4, 3, seed=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    z = layer(x)
    z.retain_grad()
    ((z - targets).square().sum() / (2 * len(x))).backward()
    optimizer.step()
    assert z.grad is not None
    torch.testing.assert_close(layer(x), z - 0.1 * len(x) * z.grad, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 100), b=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_contrast_does_not_matter(seed: int, scale: float, b: int) -> None:
    """Bright images would train the pre-activations harder: x dW^T must not depend on the scale of x."""
    x, g = _normal(b, 4, seed=seed), _normal(b, 3, seed=seed + 1)
    moved, scaled = (c * x @ tract_gradient(c * x, g, c**2 * 1e-3).T for c in (1.0, scale))
    torch.testing.assert_close(moved, scaled, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("b", [20, 200])
def test_inputs_that_are_not_standardised_give_a_finite_step(b: int) -> None:
    """Raw pixels have moments beyond 1e6, where lam is below float32's rounding and a factor would fail."""
    x = torch.randint(0, 256, (b, 100), generator=torch.Generator().manual_seed(0)).float()
    x[:, 50:] = x[:, :50]  # singular
    g = _normal(b, 3, dtype=torch.float32)
    found, exact = (
        tract_gradient(x, g),
        tract_gradient(x.double(), g.double(), 8 * 2**-23 * float(x.square().sum() / b)),
    )
    assert torch.isfinite(found).all()
    assert float((found - exact).norm() / exact.norm()) < 0.05


def test_halves_of_a_batch_have_inverses_of_their_own() -> None:
    """The documented meaning of accumulated gradients would not be what happens."""
    layer, x, upstream = TrActLinear(3, 2, dtype=DOUBLE), _normal(8, 3), _normal(8, 2, seed=1)
    for part, g in zip(x.chunk(2), upstream.chunk(2), strict=True):
        layer(part).backward(g)
    expected = sum(_ridge_regression(p, g, 0.1) for p, g in zip(x.chunk(2), upstream.chunk(2), strict=True))
    torch.testing.assert_close(layer.weight.grad, expected)


def test_curvature_in_training_mode_is_refused_and_right_in_eval_mode() -> None:
    """A Hessian of something that is no gradient would be taken for one."""
    layer, x = TrActLinear(3, 1, bias=False, dtype=DOUBLE), _normal(6, 3)

    def hessian() -> Tensor:
        (first,) = torch.autograd.grad(layer(x).square().mean() / 2, layer.weight, create_graph=True)
        return torch.stack([torch.autograd.grad(v, layer.weight, retain_graph=True)[0][0] for v in first[0]])

    with pytest.raises(RuntimeError):
        hessian()
    (first,) = torch.autograd.grad(layer(x).square().mean() / 2, layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    layer.eval()
    torch.testing.assert_close(hessian(), x.T @ x / 6)


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_backward_inside_autocast_is_not_rounded_to_bfloat16(name: str) -> None:
    """The inverse would be computed in half precision when backward runs inside the autocast block."""
    make, x = LAYERS[name]
    layer = make()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).square().sum().backward()
    inside = layer.get_parameter("weight").grad
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).square().sum()
    loss.backward()
    torch.testing.assert_close(inside, layer.weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_initial_weights_are_torchs_and_from_the_generator(name: str) -> None:
    """A layer would start elsewhere than torch's, or draw from the global generator although it has one."""
    kind, arguments = {
        "linear": (TrActLinear, (7, 4)),
        "convolution": (TrActConv2d, (2, 4, 3)),
        "one-image": (TrActConv2d, (2, 4, (1, 2))),
        "embedding": (TrActEmbedding, (7, 4, 0)),
    }[name]
    torch.manual_seed(5)
    plain = kind.__mro__[1](*arguments)
    state = torch.get_rng_state()
    own = kind(*arguments, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in plain.state_dict().items():
        assert torch.equal(own.state_dict()[key], value), key


@pytest.mark.parametrize("lam", [0.0, -1.0, math.inf, math.nan])
def test_a_ridge_that_is_not_above_zero_is_refused(lam: float) -> None:
    """An inverse of a singular matrix would be taken."""
    for make in (
        lambda: TrActLinear(2, 2, lam=lam),
        lambda: TrActConv2d(2, 2, 1, lam=lam),
        lambda: TrActEmbedding(2, 2, lam=lam),
        lambda: tract_gradient(torch.ones(2, 2), torch.ones(2, 2), lam),
    ):
        with pytest.raises(InvalidInput, match="lam must be a finite number above 0"):
            make()
    with pytest.raises(InvalidInput, match=r"x \(b, n\) and g \(b, m\)"):
        tract_gradient(torch.ones(2, 2), torch.ones(3, 2))
