from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.kernels import Embedding, embedding, embedding_reference
from assay.kernels.token_embedding.segments import embedding_gradient
from assay.testing._interpreter import interpreter


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=2),
    words=st.integers(1, 6),
    features=st.integers(1, 5),
    padding=st.none() | st.integers(-6, 5),
    seed=st.integers(0, 2**16),
)
def test_equals_torchs(shape, words, features, padding, seed):
    """Rows or the gradient of some shape, padding included, would differ from F.embedding's."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(words, shape, generator=generator)
    weight = torch.randn(words, features, generator=generator, dtype=torch.float64, requires_grad=True)
    if padding is not None and not -words <= padding < words:
        padding = None
    upstream = torch.randn(*shape, features, generator=generator, dtype=torch.float64)
    results = [f(tokens, weight, padding) for f in (embedding, embedding_reference, F.embedding)]
    gradients = [torch.autograd.grad(result, weight, upstream)[0] for result in results]
    for result, gradient in zip(results[1:], gradients[1:], strict=True):
        assert torch.equal(results[0], result)
        torch.testing.assert_close(gradients[0], gradient, rtol=1e-12, atol=1e-12)


def test_frequent_words_get_all_of_their_gradient():
    """Summed in bfloat16, 1 added to 256 a thousand times stays 256, as F.embedding's gradient may."""
    tokens = torch.zeros(4096, dtype=torch.int64)
    weight = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(embedding(tokens, weight).sum(), weight)
    assert gradient[0].tolist() == [4096.0] * 3 and gradient[1].tolist() == [0.0] * 3


def test_module_is_torchs():
    """The module would not take the place of torch.nn.Embedding."""
    theirs, ours = torch.nn.Embedding(7, 4, padding_idx=2), Embedding(7, 4, padding_idx=2)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.tensor([[2, 6], [0, 2]])
    results = [module(tokens) for module in (ours, theirs)]
    assert torch.equal(*results)
    assert torch.equal(
        *(torch.autograd.grad(y.sum(), m.weight)[0] for y, m in zip(results, (ours, theirs), strict=True))
    )
    with pytest.raises(InvalidInput, match="no max_norm"):
        Embedding(7, 4, max_norm=1.0)(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.tensor([0, 7])}, r"words must lie in \[0, 7\), but they range from 0 to 7"),
        ({"input": torch.tensor([-1])}, "range from -1 to -1"),
        ({"input": torch.zeros(2)}, "input must be int64 or int32"),
        ({"weight": torch.zeros(7)}, r"weight must be floating point \(V, H\)"),
        ({"weight": torch.zeros(7, 3, device="meta")}, "weight is on meta"),
        ({"padding_idx": 7}, "padding_idx must name one of the 7 words"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    """A word out of range or a wrong type would read foreign memory or fail in the depths of torch."""
    with pytest.raises(InvalidInput, match=message):
        embedding(**{"input": torch.tensor([0, 1]), "weight": torch.zeros(7, 3), **change})


def test_forward_mode_is_refused():
    """A derivative that the op lacks would come out as zero instead of an error."""
    weight = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInput, match="embedding_reference"):
        torch.func.jvp(lambda w: embedding(torch.tensor([0, 1]), w), (weight,), (weight,))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_kernel_equals_sums_over_segments():
    """The kernel that a GPU runs would sum other rows, in some type or width."""
    from assay.kernels.token_embedding.triton_kernel import embedding_gradient_triton

    generator = torch.Generator().manual_seed(0)
    with interpreter() as interpreted:
        for tokens, features in ((9, 5), (20, 1030), (0, 4)):
            words = torch.randint(6, (tokens,), generator=generator)
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                dy = torch.randn(tokens, features, generator=generator).to(dtype)
                for padding in (-1, 2):
                    found = interpreted(embedding_gradient_triton, dy, words, 6, padding)
                    expected = embedding_gradient(dy, words, 6, padding)
                    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
