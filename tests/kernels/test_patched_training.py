"""Patched and unpatched models train side by side, as in Liger Kernel's convergence tests, at a small size."""

from __future__ import annotations

import functools
import os

import pytest
import torch

from assay.data.text import stdlib_text, tinyshakespeare
from assay.kernels._swap import recipes_of
from assay.kernels.patching import patch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, BATCH, CONTEXT = 32, 8, 64
# Vocabulary -> how many of the text's characters make one token.
CHARACTERS = {"characters": 1, "pairs": 2}
MODELS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"head_dim": 32}),
    "gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config, {"head_dim": 32}),
}


@functools.cache
def text(vocabulary):
    """Batches of tokens (32 + 1, 8, 64) of Shakespeare, or of Python's library where that is not at hand; and V."""
    size = CHARACTERS[vocabulary]
    source = tinyshakespeare if os.environ.get("ASSAY_DATA") else stdlib_text
    windows = (STEPS + 1) * BATCH
    generator = torch.Generator().manual_seed(0)
    data = source(context=size * CONTEXT, train=windows, validation=1, test=1, generator=generator)
    count = len(data.vocabulary)
    tokens = data.train.inputs.view(STEPS + 1, BATCH, CONTEXT, size)
    return (tokens * count ** torch.arange(size)).sum(-1), count**size


def build(name, vocabulary, dtype):
    """Two layers, hidden 128."""
    model, config, more = MODELS[name]
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    tokens = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(vocab_size=vocabulary, **sizes, **tokens, **more)).to(dtype).train()


def train(model, batches):
    """Losses of 32 steps of AdamW at Liger's rate; the last batch is for evaluation."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for batch in batches[:-1]:
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().float())
    return torch.stack(losses)


@torch.no_grad()
def log_probabilities(model, batch):
    """The ten largest of every position, as Liger compares them."""
    return model.eval()(input_ids=batch).logits.float().log_softmax(-1).topk(10).values


@torch.no_grad()
def distance(one, other):
    """Euclidean distance of two models' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.stack([(a.float() - b.float()).norm() for a, b in pairs]).norm()


@pytest.mark.parametrize(
    ("name", "vocabulary", "dtype"),
    [
        ("llama", "characters", torch.float32),
        ("llama", "characters", torch.bfloat16),
        ("llama", "pairs", torch.float32),
        ("qwen3", "characters", torch.float32),
        ("gemma2", "characters", torch.float32),
    ],
    ids=str,
)
def test_patched_and_unpatched_models_train_alike(name, vocabulary, dtype):
    """Training with the kernels would drift from training without them, in loss, logits or parameters."""
    batches, words = text(vocabulary)
    plain, patched = build(name, words, dtype), build(name, words, dtype)
    record = patch(patched)
    kernels = {recipe.kernel for module in patched.modules() for recipe in recipes_of(module)} - {""}
    assert kernels == {"rms_norm", "rope", "geglu" if name == "gemma2" else "swiglu", "linear_cross_entropy"}
    assert not any(recipes_of(module) for module in plain.modules())

    expected, found = train(plain, batches), train(patched, batches)
    assert expected[-1] < expected[0] - 0.2  # or there is nothing to compare
    # In float32 Liger's tolerances. Adam turns rounding of bfloat16 gradients into whole steps of 1e-4.
    exact = dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-5 if exact else 1e-3, atol=1e-8)
    evaluated = (log_probabilities(model, batches[-1]) for model in (patched, plain))
    torch.testing.assert_close(*evaluated, rtol=1e-5, atol=5e-3 if exact else 5e-2)
    for a, b in zip(patched.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-3)
    # These tolerances allow more than 32 steps of 1e-4 can move a parameter, so compare with the way they went.
    start = build(name, words, dtype)
    assert distance(patched, plain) <= (1e-4 if exact else 0.1) * distance(plain, start)

    record.undo()
    plain.load_state_dict(patched.state_dict())
    losses = [model.train()(input_ids=batches[-1], labels=batches[-1]).loss for model in (patched, plain)]
    assert torch.equal(*losses)
