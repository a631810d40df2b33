"""The Triton kernels of gated activations, cross-entropy and divergences: interpreted, and compiled for a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from assay.kernels._cross_entropy_rows import LossTerms, row_losses
from assay.kernels.divergence.blocked import divergence_blocked, divergence_blocked_backward
from assay.kernels.fused_linear_jsd.chunked import logits_divergence
from assay.kernels.gated_activations.blocked import gated_activation_blocked, gated_activation_blocked_backward
from assay.testing._interpreter import interpreter

pytest.importorskip("triton", reason="the Triton kernels need triton")

DTYPES = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
WIDE = 8200  # more than the largest block, and odd


@pytest.fixture(scope="module")
def interpreted():
    """A process in which Triton interprets its kernels."""
    with interpreter() as run:
        yield run


def normal(*shape, dtype=torch.float32, seed=0):
    """Normal values, so large that activations and softmaxes leave their linear range."""
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_near(found, expected, tolerance):
    """Compare results, `None` where not asked for, up to rounding."""
    for a, e in zip(found, expected, strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance, check_dtype=True)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 37), (1, 4099), (2, 1)])
def test_gated_activation(interpreted, activation, dtype, shape):
    """The kernel would differ from the any-device implementation on odd shapes or strided halves."""
    from assay.kernels.gated_activations import triton_kernel

    both = normal(shape[0], 2 * shape[1], dtype=dtype)
    a, b, dc = *both.chunk(2, 1), normal(*shape, dtype=dtype, seed=1)
    found = [
        interpreted(triton_kernel.triton_gated_activation, a, b, activation),
        *interpreted(triton_kernel.triton_gated_activation_backward, dc, a, b, activation),
    ]
    exact = [t.float() for t in (a, b, dc)]
    expected = [
        gated_activation_blocked(*exact[:2], activation),
        *gated_activation_blocked_backward(exact[2], *exact[:2], activation),
    ]
    assert_near(found, [e.to(dtype) for e in expected], DTYPES[dtype])


@pytest.mark.parametrize("options", list(itertools.product((0.0, 0.1), (0.0, 0.01), (None, 3.0), (False, True))))
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_losses(interpreted, options, dtype):
    """Loss or gradient of some combination of options would differ from the any-device implementation."""
    from assay.kernels.row_cross_entropy import triton_kernel

    smoothing, z_loss, softcap, weighted = options
    weight = torch.linspace(0.1, 2, 37) if weighted else None
    terms = LossTerms(-100, smoothing, z_loss, softcap, weight)
    logits, labels = normal(5, 37, dtype=dtype), torch.tensor([0, 36, -100, 16, 5])
    for scale in (None, torch.linspace(-1, 2, 5)):
        # Tensors are shared with the process: it overwrites these logits.
        overwritten, gradient = logits.clone(), torch.empty_like(logits)
        loss = interpreted(
            triton_kernel.triton_row_losses, overwritten, labels, terms, scale=scale, gradient=overwritten
        )
        expected = row_losses(logits, labels, terms, scale=scale, gradient=gradient)
        assert_near([loss], [expected], 2e-5)
        assert_near([overwritten], [gradient], DTYPES[dtype])
    assert_near([interpreted(triton_kernel.triton_row_losses, logits, labels, terms)], [expected], 2e-5)


def test_row_losses_over_several_blocks(interpreted):
    """The online softmax would lose what earlier blocks held, or an all-masked first block make nan."""
    from assay.kernels.row_cross_entropy import triton_kernel

    logits, labels = normal(2, 2 * WIDE), torch.tensor([3, 2 * WIDE - 1])
    logits[1, :WIDE] = -torch.inf
    terms = LossTerms(softcap=None, z_loss=0.01)
    gradient, expected = torch.empty_like(logits), torch.empty_like(logits)
    loss = interpreted(triton_kernel.triton_row_losses, logits, labels, terms, gradient=gradient)
    assert_near([loss], [row_losses(logits, labels, terms, gradient=expected)], 2e-5)
    assert_near([gradient], [expected], 2e-5)


@pytest.mark.parametrize("setting", [(0.0, True), (1.0, True), (0.3, True), (0.0, False)])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_divergence(interpreted, setting, per_class, dtype):
    """Divergence or a gradient would differ from the any-device implementation, masked classes among them."""
    from assay.kernels.divergence import triton_kernel

    beta, log_target = setting
    x, t = (normal(5, 4099, seed=seed).log_softmax(1) for seed in (0, 1))
    x[0, 3] = t[0, 3] = t[1, 2] = -torch.inf
    x, t = x.to(dtype), (t if log_target else t.exp()).to(dtype)
    upstream = normal(5, 4099 if per_class else 1, seed=2)
    found = [interpreted(triton_kernel.triton_divergence, x, t, beta, log_target, per_class)]
    expected = [divergence_blocked(x, t, beta, log_target, per_class)]
    for needs in ((True, log_target), (False, log_target)):
        found += interpreted(triton_kernel.triton_divergence_backward, upstream, x, t, beta, log_target, needs)
        expected += divergence_blocked_backward(upstream, x, t, beta, log_target, needs)
    assert_near(found, expected, DTYPES[dtype])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_divergence(interpreted, beta, dtype):
    """The step of `linear_jsd` would differ from the any-device implementation, in place or with scaled rows."""
    from assay.kernels.fused_linear_jsd import triton_kernel

    for classes, scale in ((37, None), (4099, torch.linspace(-1, 2, 3))):
        logits, targets = (normal(3, classes, dtype=dtype, seed=seed) for seed in (0, 1))
        overwritten, gradient = logits.clone(), torch.empty_like(logits)
        run = triton_kernel.triton_logits_divergence
        loss = interpreted(run, overwritten, targets, beta, 2.0, scale=scale, gradient=overwritten)
        expected = logits_divergence(logits, targets, beta, 2.0, scale=scale, gradient=gradient)
        assert_near([loss], [expected], 2e-5)
        assert_near([overwritten], [gradient], DTYPES[dtype])


@pytest.mark.parametrize("folder", ["gated_activations", "row_cross_entropy", "divergence", "fused_linear_jsd"])
def test_compiles_for_sm_90_without_spills(folder):
    """A kernel would not compile for an H100, or need more registers than there are."""
    import importlib

    from assay.kernels._ahead_of_time import compile_for

    for compilation in importlib.import_module(f"assay.kernels.{folder}.triton_kernel").ahead_of_time():
        compiled = compile_for(compilation)
        assert compiled.spilled_bytes == 0 and compiled.atomics == 0, compiled
