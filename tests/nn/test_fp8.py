from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.nn.fp8 import FP8MLP, FP8Linear, FP8RMSNorm

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


def generator(seed=0):
    """A generator of a test's own."""
    return torch.Generator().manual_seed(seed)


def rounded(x, dtype, group_size=None):
    """Return x with each number rounded to FP8 with one scale, or one (in bfloat16) per group of the last dimension; slow."""
    if group_size is None:
        scale = (x.abs().max().float() / torch.finfo(dtype).max).to(x.dtype)
        return (x / scale).to(dtype).to(x.dtype) * scale
    parts = []
    for part in x.split(group_size, -1):
        scale = (part.abs().amax(-1, keepdim=True).float() / torch.finfo(dtype).max).to(torch.bfloat16).to(x.dtype)
        parts.append((part / scale).to(dtype).to(x.dtype) * scale)
    return torch.cat(parts, -1)


def through(x, *args):
    """Rounding whose gradient is the identity's."""
    return x + (rounded(x.detach(), *args) - x).detach()


class RoundGradient(torch.autograd.Function):
    """The identity, with the gradient rounded to E5M2."""

    @staticmethod
    def forward(ctx, x):
        """Return x."""
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        """Return the rounded gradient."""
        return rounded(gradient, E5M2)


def plain_linear(x, layer):
    """A linear layer of the precision flow from PyTorch's own operations."""
    product = F.linear(through(x, E4M3), through(layer.weight, E4M3))
    return RoundGradient.apply(product) + (0 if layer.bias is None else layer.bias)


def plain_norm(x, layer):
    """RMSNorm of the precision flow from PyTorch's own operations."""
    return F.rms_norm(through(x, E4M3, layer.group_size), (layer.features,), layer.weight, layer.eps)


def plain_mlp(x, block):
    """The whole block from PyTorch's own operations; it keeps everything in full."""
    activation, size = ACTIVATIONS[block.activation], block.group_size
    if block.gate is None:
        return plain_linear(activation(through(plain_linear(x, block.up), E4M3, size)), block.down)
    gate = activation(through(plain_linear(x, block.gate), E4M3, size))
    up = through(plain_linear(x, block.up), E4M3, size)
    return plain_linear(through(gate, E4M3, size) * up, block.down)


def both(call, reference, x, parameters):
    """Outputs and gradients of the part and of its reference, for a random upstream gradient."""
    results, parameters = [], list(parameters)
    for function in (call, reference):
        y = function(x)
        upstream = torch.randn(y.shape, generator=generator(9), dtype=torch.float64).to(y.dtype)
        results.append([y, *torch.autograd.grad(y, [x, *parameters], upstream)])
    return zip(*results, strict=True)


def inputs(*shape, dtype=torch.float64):
    """Random inputs of different sizes that want a gradient."""
    x = torch.randn(*shape, generator=generator(1), dtype=torch.float64) * torch.logspace(-2, 1, shape[-1])
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 24), (7, 24), (24,)])
def test_linear_against_straight_through_rounding(bias, shape):
    """Forward or a gradient would use other numbers than those rounded to E4M3 (gradients: E5M2) with one scale."""
    layer = FP8Linear(24, 10, bias=bias, generator=generator(), dtype=torch.float64)
    for found, expected in both(layer, lambda x: plain_linear(x, layer), inputs(*shape), layer.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_mlp_against_straight_through_rounding(activation, gated):
    """The block would round in other places or granularities than the paper's flow, or differentiate something else."""
    options = {"gated": gated, "bias": True, "group_size": 16, "dtype": torch.float64}
    block = FP8MLP(24, 40, activation, generator=generator(), **options)
    for found, expected in both(block, lambda x: plain_mlp(x, block), inputs(3, 5, 24), block.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("features", [32, 21])
def test_norm_against_straight_through_rounding(features):
    """The norm would not be that of the rounded input, or its gradient not the norm's."""
    layer = FP8RMSNorm(features, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(features, generator=generator(2)))
    for found, expected in both(layer, lambda x: plain_norm(x, layer), inputs(3, 5, features), layer.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_exactly_representable_numbers_give_nn_linear():
    """With weights, inputs and gradients that FP8 holds, the layer must be `nn.Linear` bit for bit."""
    layer = FP8Linear(16, 8, generator=generator())
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-7, 8, (8, 16), generator=generator(1)) * 64.0)
        layer.weight[0, 0] = 448.0
    x = torch.randint(-7, 8, (5, 16), generator=generator(2)).float() * 64
    x[0, 0] = 448.0
    x.requires_grad_()
    y = layer(x)
    gradient = torch.randint(-3, 4, y.shape, generator=generator(3)) * 0.5
    gradient[0, 0] = 1.75
    expected = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(y, expected)
    found = torch.autograd.grad(y, [x, *layer.parameters()], gradient)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found, torch.autograd.grad(expected, [x, *layer.parameters()], gradient), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_type_stays_near_the_plain_block(dtype):
    """A type would overflow on the way or lose more than FP8's own rounding: directions against the plain block."""
    norm = FP8RMSNorm(64, dtype=dtype)
    block = FP8MLP(64, 160, bias=True, generator=generator(), dtype=dtype)
    plain_norm_, plain = nn.RMSNorm(64, eps=1e-5), FP8MLP(64, 160, bias=True).float()
    plain.load_state_dict(block.state_dict())

    def reference(x):
        h = plain_norm_(x.float())
        gate = F.silu(F.linear(h, plain.gate.weight, plain.gate.bias)) * F.linear(h, plain.up.weight, plain.up.bias)
        return F.linear(gate, plain.down.weight, plain.down.bias)

    x = torch.randn(32, 64, generator=generator(1)).mul(20).to(dtype).requires_grad_()
    upstream = torch.randn(32, 64, generator=generator(2))
    y, expected = block(norm(x)), reference(x)
    assert y.dtype is dtype
    found = torch.autograd.grad(y, [x, *block.parameters()], upstream.to(dtype))
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], upstream)
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        assert F.cosine_similarity(a.float().flatten(), b.float().flatten(), 0) > 0.99


def saved_bytes(call, x, parameters):
    """Bytes of the distinct storages that backward needs, parameters aside."""
    storages, ignored = {}, {p.untyped_storage().data_ptr() for p in parameters}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(x)
    return sum(size for size, _ in storages.values())


def test_saved_bytes_are_those_of_the_formula():
    """The block would keep a second copy, or anything in full: counted, against the paper's table in bytes."""
    rows, d, h = 96, 64, 160
    norm, block = FP8RMSNorm(d, dtype=torch.bfloat16), FP8MLP(d, h, dtype=torch.bfloat16, generator=generator())
    x = torch.randn(rows, d, dtype=torch.bfloat16, generator=generator(1)).requires_grad_()
    parameters = [*norm.parameters(), *block.parameters()]
    found = saved_bytes(lambda x: block(norm(x)), x, parameters)
    grouped, scales = d + d / 8, 2 * 4
    assert found == rows * (grouped + 4 + d + 4 * h + 3 * h / 8) + scales

    def plain(x):
        hidden = F.rms_norm(x, (d,), norm.weight, 1e-5)
        gate = F.silu(F.linear(hidden, block.gate.weight)) * F.linear(hidden, block.up.weight)
        return F.linear(gate, block.down.weight)

    assert found < 0.56 * saved_bytes(plain, x, parameters)


def test_it_is_an_nn_linear():
    """Weights of `nn.Linear` would not load, or start from another distribution."""
    ours, theirs = FP8Linear(12, 7, generator=generator(5)), nn.Linear(12, 7)
    theirs.load_state_dict(ours.state_dict())
    state, torch_state = generator(5), torch.get_rng_state()
    torch.set_rng_state(state.get_state())
    fresh = nn.Linear(12, 7)
    torch.set_rng_state(torch_state)
    assert torch.equal(fresh.weight, ours.weight) and torch.equal(fresh.bias, ours.bias)


def test_copies_compute_the_same():
    """A generator that is left in the layer would make it impossible to copy or to pickle."""
    block = FP8MLP(8, 16, generator=generator())
    x = inputs(3, 8, dtype=torch.float32)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(x), block(x))


def test_autocast_decides_the_type():
    """Autocast would be ignored, or its type leak into gradients."""
    block, x = FP8MLP(32, 64, generator=generator()), inputs(6, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype is torch.bfloat16
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.dtype is torch.float32 and gradient.isfinite().all()


def test_frozen_inputs_and_weights_cost_no_gradient():
    """Frozen weights or inputs without gradient would break backward, or be given a gradient."""
    layer = FP8Linear(8, 4, generator=generator())
    layer.weight.requires_grad_(False)
    x = inputs(3, 8, dtype=torch.float32)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None and layer.bias.grad is not None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


def test_overflow_shows():
    """An infinity in the activations would be clipped, and loss scaling never hear of it."""
    x = torch.ones(2, 32)
    x[0, 0] = math.inf
    assert not FP8Linear(32, 4)(x).isfinite().all()
    assert not FP8RMSNorm(32)(x).isfinite().all()


def test_second_derivatives_are_refused():
    """They would silently be zero, since rounding is taken for the identity once only."""
    x = inputs(3, 8, dtype=torch.float32)
    (gradient,) = torch.autograd.grad(FP8Linear(8, 4)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_empty_batches_and_bad_input():
    """An empty batch would raise; a wrong shape, type, size or activation would not."""
    block = FP8MLP(8, 16)
    y = block(torch.zeros(0, 8, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 8) and torch.equal(block.up.weight.grad, torch.zeros(16, 8))
    assert FP8RMSNorm(8)(torch.zeros(0, 8)).shape == (0, 8)
    for layer in (block, FP8Linear(8, 4), FP8RMSNorm(8)):
        with pytest.raises(InvalidInput, match=r"\(\.\.\., 8\); got torch.float32 of shape \(2, 7\)"):
            layer(torch.zeros(2, 7))
        with pytest.raises(InvalidInput, match="int64"):
            layer(torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="gelu, relu; got 'tanh'"):
        FP8MLP(8, 16, "tanh")
    for make in (lambda: FP8Linear(0, 3), lambda: FP8RMSNorm(0), lambda: FP8MLP(8, 16, group_size=0)):
        with pytest.raises(InvalidInput, match="at least 1"):
            make()
