from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from assay.errors import InvalidInput
from assay.kernels import rope, rope_reference
from assay.kernels.rotary_embedding.blocked import inverse_sine, rope_blocked
from assay.testing._interpreter import interpreter


def angles(batch, length, features, dtype=torch.float64, same_halves=True):
    """Cosines and sines (B, T, D) of positions; of different angles for the halves, if asked for."""
    rates = 10.0 ** -torch.linspace(0, 3, features // 2, dtype=torch.float64)
    rates = torch.cat((rates, rates if same_halves else 1.7 * rates))
    turns = (torch.arange(length).expand(batch, length) + 3 * torch.arange(batch).unsqueeze(1)).unsqueeze(-1) * rates
    return turns.cos().to(dtype), turns.sin().to(dtype)


def heads(batch, number, length, features, dtype=torch.float64, seed=0, transposed=False):
    """Queries or keys (B, N, T, D) that want a gradient; as a view of (B, T, N, D), if asked for."""
    shape = (batch, length, number, features) if transposed else (batch, number, length, features)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return (x.transpose(1, 2) if transposed else x).requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    numbers=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    length=st.integers(0, 6),
    half=st.integers(1, 5),
    shared=st.booleans(),
    transposed=st.booleans(),
    same_halves=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_hugging_face(batch, numbers, length, half, shared, transposed, same_halves, seed):
    """Result or gradients of some shape and layout would differ from apply_rotary_pos_emb in float64."""
    q, k = (heads(batch, n, length, 2 * half, seed=seed + i, transposed=transposed) for i, n in enumerate(numbers))
    cos, sin = angles(1 if shared else batch, length, 2 * half, same_halves=same_halves)
    found, expected = rope(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin)
    upstream = [heads(*x.shape, seed=9).detach() for x in found]
    gradients = (torch.autograd.grad(y, (q, k), upstream) for y in (found, expected))
    for a, b in zip((*found, *next(gradients)), (*expected, *next(gradients)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_tokens_first_and_two_dimensional_angles():
    """The layout (B, T, heads, D), or cosines without a batch dimension, would rotate by other positions."""
    q, k = heads(2, 3, 5, 4), heads(2, 1, 5, 4, seed=1)
    cos, sin = angles(1, 5, 4)
    expected = rope(q, k, cos, sin)
    for a, b in zip(rope(q.transpose(1, 2), k.transpose(1, 2), cos[0], sin[0], unsqueeze_dim=2), expected, strict=True):
        torch.testing.assert_close(a.transpose(1, 2), b)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 9), half=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_turning_back_gives_the_input_and_lengths_stay(length, half, seed):
    """It would not be a rotation."""
    x, (cos, sin) = heads(2, 3, length, 2 * half, seed=seed).detach(), angles(2, length, 2 * half)
    turned = rope_blocked(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rope_blocked(turned, cos, -sin), x)
    torch.testing.assert_close(rope_blocked(turned, cos, inverse_sine(sin)), x)


def test_scores_depend_on_distances_only():
    """Attention between turned queries and keys would depend on absolute positions."""
    q, k = (heads(1, 1, 1, 8, seed=i).expand(1, 1, 6, 8) for i in range(2))
    turned_q, turned_k = rope(q, k, *angles(1, 6, 8))
    scores = (turned_q @ turned_k.transpose(-1, -2))[0, 0]
    for distance in range(-5, 6):
        assert scores.diagonal(distance).std(correction=0) < 1e-12
    assert scores[0].std() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    """Products rounded to half precision one by one, as in eager code, would cost accuracy."""
    q, k = (heads(1, n, 64, 16, dtype=dtype) for n in (8, 2))
    cos, sin = angles(1, 64, 16, dtype=dtype)
    exact = rope_reference(q.double(), k.double(), cos.double(), sin.double())[0]
    found, theirs = rope(q, k, cos, sin)[0], apply_rotary_pos_emb(q, k, cos, sin)[0]
    assert found.dtype == dtype
    errors = [float((y.detach().double() - exact.detach()).norm() / exact.detach().norm()) for y in (found, theirs)]
    assert errors[0] < torch.finfo(dtype).eps / 2 and errors[1] > 1.2 * errors[0]


def test_keeps_only_cosines_and_sines_and_the_strides():
    """Queries or keys would be kept for backward, or results come in a layout that attention has to copy."""
    q, k = heads(2, 3, 5, 4, transposed=True), heads(2, 1, 5, 4, transposed=True)
    (cos, sin), saved = angles(1, 5, 4), []

    def pack(tensor):
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        turned_q, turned_k = rope(q, k, cos, sin)
    assert saved == [cos.data_ptr(), sin.data_ptr()]
    assert turned_q.stride() == q.stride() and turned_k.stride() == k.stride()


@pytest.mark.parametrize(
    "slices", [[(0, 2, 0, 5), (2, 3, 0, 5)], [(b, b + 1, t, min(t + 2, 5)) for b in range(3) for t in (0, 2, 4)]]
)
def test_many_blocks_are_one(monkeypatch, slices):
    """Several sequences in a block, or parts of one, would be rotated by each other's angles."""
    x, (cos, sin) = heads(3, 2, 5, 4, transposed=True).detach(), angles(3, 5, 4)
    whole = rope_blocked(x, cos, sin)
    blocks = [(slice(a, b), slice(c, d)) for a, b, c, d in slices]
    monkeypatch.setattr("assay.kernels.rotary_embedding.blocked._token_blocks", lambda _: iter(blocks))
    torch.testing.assert_close(rope_blocked(x, cos, sin), whole)
    torch.testing.assert_close(rope_blocked(x, cos[:1], sin[:1])[0], whole[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 3, 5, 3)}, "D even"),
        ({"q": torch.zeros(3, 5, 4)}, r"q must be floating point of shape \(B, heads, T, D\)"),
        ({"k": torch.zeros(2, 1, 5, 4, dtype=torch.int64)}, "k must be floating point"),
        ({"k": torch.zeros(2, 1, 4, 4)}, "apart from the heads"),
        ({"k": torch.zeros(2, 1, 5, 4, dtype=torch.float64)}, "one type"),
        ({"cos": torch.zeros(1, 4, 4)}, r"\(2 or 1, 5, 4\) or \(5, 4\)"),
        ({"sin": torch.zeros(2, 5, 4)}, "both alike"),
        ({"cos": torch.zeros(1, 5, 4, dtype=torch.int64)}, "cos must be floating point"),
        ({"cos": torch.zeros(1, 5, 4, requires_grad=True)}, "cos would get no gradient"),
        ({"sin": torch.zeros(1, 5, 4, device="meta")}, "sin is on meta"),
        ({"unsqueeze_dim": 3}, "must be 1 or 2"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    """A wrong shape, type or option would give a wrong number or an error from the depths of torch."""
    cos, sin = angles(1, 5, 4, torch.float32)
    arguments = {"q": torch.zeros(2, 3, 5, 4), "k": torch.zeros(2, 1, 5, 4), "cos": cos, "sin": sin, **change}
    with pytest.raises(InvalidInput, match=message):
        rope(**arguments)


def test_forward_mode_is_refused():
    """A derivative that the op lacks would come out as zero instead of an error."""
    q, k = (heads(1, 1, 5, 4).detach() for _ in range(2))
    with pytest.raises(InvalidInput, match="rope_reference"):
        torch.func.jvp(lambda a: rope(a, k, *angles(1, 5, 4))[0], (q,), (q,))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_kernel_equals_the_blocks():
    """The kernel that a GPU runs would compute something else, in some type, layout or number of heads."""
    from assay.kernels.rotary_embedding.triton_kernel import rope_triton

    with interpreter() as interpreted:
        for seed, (batch, n, m, length, features) in enumerate([(2, 3, 1, 5, 6), (1, 5, 8, 3, 2), (3, 1, 1, 1, 34)]):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                q = heads(batch, n, length, features, dtype, seed, transposed=True).detach()
                k = heads(batch, m, length, features, dtype, seed + 1).detach()
                for spread in (q, q.transpose(2, 3).contiguous().transpose(2, 3)):
                    cos, sin = angles(batch if seed % 2 == 0 else 1, length, features, dtype, same_halves=False)
                    expected = rope_blocked(spread, cos, sin), rope_blocked(k, cos, sin)
                    for a, e in zip(interpreted(rope_triton, spread, k, cos, sin), expected, strict=True):
                        torch.testing.assert_close(a, e, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
                        assert a.stride() == e.stride()
