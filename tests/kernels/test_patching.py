from __future__ import annotations

import copy
import pickle
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from assay.errors import InvalidInput, UnknownName
from assay.kernels._swap import recipes_of
from assay.kernels.patching import Patch, patch
from assay.kernels.tiling import tiled

transformers = pytest.importorskip("transformers")
# GPT-2's default tokens lie outside a small vocabulary, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = 301
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GATED = {"rope": 2, "swiglu": 2, "linear_cross_entropy": 1}
TANH_GATED = {"rope": 2, "geglu": 2, "linear_cross_entropy": 1}

# Name of config, of model, further options, what has to be replaced.
MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}, {"rms_norm": 5, **GATED}),
    "llama-tied-biases": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"rms_norm": 5, **GATED},
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}, {"rms_norm": 5, **GATED}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8}, {"rms_norm": 9, **GATED}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {}, {"rms_norm": 5, **GATED}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 8}, {"rms_norm": 5, **TANH_GATED}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"head_dim": 8, "final_logit_softcapping": 2.0},
        {"rms_norm": 9, **TANH_GATED},
    ),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}, {"layer_norm": 5, "gelu": 2, "linear_cross_entropy": 1}),
    # Nobody wrote a line for these: they are recognised by what they compute.
    "granite": ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 4.0}, {"rms_norm": 5, **GATED}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}, {"rms_norm": 9, **GATED}),
    "gpt-neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {},
        {"layer_norm": 5, "rope": 2, "linear_cross_entropy": 1},
    ),
}


def make(name="llama", **options):
    """A tiny random model in training mode, its norms' weights away from 1 and 0."""
    config, model, more, _ = MODELS[name]
    sizes = {**GPT2_SIZES, **NO_DROPOUT} if name == "gpt2" else SIZES
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **more, **options}))
        for parameter in built.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return built.train()


def batch():
    """Tokens and labels, of which some are ignored."""
    tokens = torch.randint(3, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[0, :5] = labels[1, 9] = -100
    return {"input_ids": tokens, "labels": labels}


def loss_and_gradients(model, **inputs):
    """The loss and the gradients by parameter name."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(found, expected, tolerance=1e-5):
    """Losses and gradients agree up to rounding."""
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        # By the largest gradient of the model: some are zero but for rounding.
        scale = max(float(g.abs().max()) for g in expected[1].values())
        torch.testing.assert_close(found[1][name], gradient, rtol=100 * tolerance, atol=tolerance * scale, msg=name)


def assert_active(model, expected):
    """The modules that run are the replaced ones."""
    found = Counter(recipe.kernel for module in model.modules() for recipe in recipes_of(module) if recipe.kernel)
    assert found == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_patched_model_computes_the_same_and_undo_leaves_no_trace(name):
    """Patching would miss modules, change what a model learns, replace its parameters, or not go away again."""
    model, inputs = make(name), batch()
    before = loss_and_gradients(model, **inputs)
    parameters, state = dict(model.named_parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    classes, attributes = [type(m) for m in model.modules()], [set(m.__dict__) for m in model.modules()]
    record = patch(model)

    assert record.counts == MODELS[name][3]
    assert not record.skipped
    assert_active(model, MODELS[name][3])
    assert model(**inputs).logits is None
    assert_same_step(loss_and_gradients(model, **inputs), before)
    assert all(p is parameters[k] for k, p in model.named_parameters())
    assert model.state_dict().keys() == state.keys()
    assert [type(m).__name__ for m in model.modules()] == [c.__name__ for c in classes]

    record.undo()
    record.undo()
    assert [type(m) for m in model.modules()] == classes
    assert [set(m.__dict__) for m in model.modules()] == attributes
    again = loss_and_gradients(model, **inputs)
    assert torch.equal(again[0], before[0]) and all(torch.equal(again[1][k], g) for k, g in before[1].items())


@pytest.mark.parametrize("kernel", ["rms_norm", "rope", "swiglu", "linear_cross_entropy"])
def test_kernels_can_be_chosen_and_combined(kernel):
    """A choice of kernels would be ignored, or patching again with others refused."""
    model, inputs = make(), batch()
    before, counts = loss_and_gradients(model, **inputs), MODELS["llama"][3]
    with patch(model, [kernel]) as first:
        assert first.counts == {kernel: counts[kernel]}
        assert_active(model, first.counts)
        others = patch(model, [name for name in counts if name != kernel])
        assert_active(model, counts)
        assert_same_step(loss_and_gradients(model, **inputs), before)
    assert_active(model, others.counts)  # the other patch outlives the first
    others.undo()
    assert_active(model, {})


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_items_in_batch": 7},
        {"num_items_in_batch": torch.tensor(40)},
        {"shift_labels": torch.arange(32).view(2, 16)},
        {"ignore_index": 5},
        {"return_dict": False},
        {"output_hidden_states": True},
        {"logits_to_keep": torch.arange(16)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_loss_mean_what_they_meant(name, options):
    """Accumulation over batches (num_items_in_batch), own shifts or tuples would give another loss or another result."""
    model, inputs = make(name), {**batch(), **options}
    if "ignore_index" in options:
        inputs["labels"] = torch.where(inputs["labels"] == -100, 5, inputs["labels"])
    expected = model(**inputs)
    with patch(model):
        found = model(**inputs)
    if options.get("return_dict") is False:
        assert isinstance(found, tuple) and len(found) == len(expected) - 1
        found, expected = {"loss": found[0]}, {"loss": expected[0]}
    else:
        assert type(found) is type(expected) and found.keys() == expected.keys() - {"logits"}
    torch.testing.assert_close(found["loss"], expected["loss"])


def test_labels_can_be_given_by_position():
    """Positional labels would be overlooked, or end in a second argument of the same name."""
    model, inputs = make(), batch()
    arguments = (inputs["input_ids"], None, None, None, None, inputs["labels"])
    expected = model(*arguments).loss
    with patch(model):
        found = model(*arguments)
    torch.testing.assert_close(found.loss, expected)
    assert found.logits is None


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_logits_are_there_without_labels_and_in_eval_mode(name):
    """Evaluation and generation would find no logits, or others."""
    model, inputs = make(name), batch()
    for training, given in ((True, {"input_ids": inputs["input_ids"]}), (False, inputs)):
        model.train(training)
        expected = model(**given)
        with patch(model):
            found = model(**given)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert (found.loss is None) == (expected.loss is None)


def test_generation_is_as_before():
    """Decoding with a cache would take another path through the patched attention."""
    model, tokens = make().eval(), batch()["input_ids"]
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(tokens, **options)
    with patch(model):
        assert torch.equal(model.generate(tokens, **options), expected)


class LargestTensor(TorchDispatchMode):
    """Notes the largest result of any operation."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run and look."""
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_the_logits_are_never_formed_in_training():
    """The memory that the patch is for would not be saved: some tensor would still be (tokens, vocabulary)."""
    model = make(vocab_size=1024)
    tokens = torch.randint(1024, (4, 512), generator=torch.Generator().manual_seed(0)) % 1000
    inputs = {"input_ids": tokens, "position_ids": torch.arange(512).expand(4, 512) % 64, "labels": tokens}
    largest = {}
    for patched in (False, True):
        record = patch(model) if patched else None
        with LargestTensor() as seen:
            model(**inputs).loss.backward()
        largest[patched] = seen.numel
        if record:
            record.undo()
    assert largest[False] >= tokens.numel() * 1024
    assert largest[True] <= tokens.numel() * 1024 // 4


def test_other_models_of_the_class_are_left_alone():
    """Patching one model would change every model of its class, as patching a class does."""
    one, other = make(), make()
    expected = loss_and_gradients(other, **batch())
    with patch(one):
        assert_active(other, {})
        found = loss_and_gradients(other, **batch())
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_patched_models_are_copied_and_pickled_with_their_patch(way, tmp_path):
    """A checkpoint of the whole model would fail, lose the patch, or share state with the original."""
    model, inputs = make(), batch()
    record = patch(model)
    expected = loss_and_gradients(model, **inputs)
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, tmp_path / "model.pt")
        twin = torch.load(tmp_path / "model.pt", weights_only=False)
    record.undo()
    assert_active(twin, record.counts)
    found = loss_and_gradients(twin, **inputs)
    assert torch.equal(found[0], expected[0])
    assert repr(Patch.of(twin)) == repr(record).replace(" (undone)", "")
    Patch.of(twin).undo()
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]


def test_saving_by_transformers_sees_the_class_it_knows(tmp_path):
    """A saved patched model would name a class in its configuration that nobody can load."""
    model = make()
    with patch(model):
        model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert type(loaded) is transformers.LlamaForCausalLM
    expected = loss_and_gradients(model, **batch())
    assert torch.equal(loss_and_gradients(loaded, **batch())[0], expected[0])


def test_a_patched_model_compiles_as_one_graph():
    """torch.compile would break the graph, or go on with the forward that was replaced."""
    model, inputs = make(num_hidden_layers=1), batch()
    expected = loss_and_gradients(model, **inputs)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        compiled(**inputs)  # what was traced before the patch must not be used after it
        with patch(model):
            assert compiled(**inputs).logits is None
            loss = compiled(**inputs).loss
            gradient = torch.autograd.grad(loss, model.model.embed_tokens.weight)[0]
            torch.testing.assert_close(loss, expected[0])
            torch.testing.assert_close(gradient, expected[1]["model.embed_tokens.weight"], rtol=1e-3, atol=1e-6)
        assert compiled(**inputs).logits is not None
    finally:
        torch._dynamo.reset()


def test_autocast_and_gradient_checkpointing_work_as_before():
    """Mixed precision would get other dtypes, recomputation other values."""
    model, inputs = make(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(model, **inputs)
        with patch(model):
            found = loss_and_gradients(model, **inputs)
    assert found[0].dtype == expected[0].dtype
    assert_same_step(found, expected, 2e-2)
    expected = loss_and_gradients(model, **inputs)
    model.gradient_checkpointing_enable()
    with patch(model):
        assert_same_step(loss_and_gradients(model, **inputs), expected)


def test_a_loss_function_of_the_users_is_respected():
    """A loss that was set after patching would be replaced by cross-entropy without a word."""
    model, inputs = make(), batch()
    with patch(model):
        model.loss_function = lambda logits, labels, vocab_size, **options: logits.square().mean()
        found = model(**inputs)
    assert found.logits is not None
    torch.testing.assert_close(found.loss, found.logits.square().mean())


class Impostor(nn.Module):
    """Looks like an RMS norm and divides by the mean square itself."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x):
        """Normalise, in a way of its own."""
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True) + self.eps)


class GatedByReLU(nn.Module):
    """Has the projections of a gated MLP and another activation."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        """Gate by ReLU."""
        return self.down_proj(F.relu(self.gate_proj(x)) * self.up_proj(x))


def test_what_computes_something_else_is_left_alone_with_a_warning():
    """A module that only looks like a norm or a gated MLP would be replaced, and give wrong numbers."""
    model = nn.Sequential(Impostor(), GatedByReLU(), nn.RMSNorm(8, eps=1e-6))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    with pytest.warns(UserWarning, match="1 Impostor for rms_norm: it computes something else.*1 GatedByReLU"):
        record = patch(model)
    assert record.counts == {"rms_norm": 1}
    assert {each.name for each in record.skipped} == {"0", "1"}
    torch.testing.assert_close(model(x), expected)


def test_what_is_replaced_on_the_instance_already_is_left_alone():
    """A forward that offloading hooks put on the instance would win over the patch, which would claim to be active."""
    model = make()
    layer = model.model.layers[0].mlp
    layer.forward = layer.forward
    with pytest.warns(UserWarning, match="1 LlamaMLP for swiglu: its forward was replaced on the instance"):
        record = patch(model)
    assert record.counts["swiglu"] == 1


@pytest.mark.parametrize("casting", ["llama", "gemma"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_offset_and_order_of_casts_of_an_unknown_norm_are_found_out(casting, offset):
    """A norm of an unknown class would get the wrong casts in half precision, or a weight that is off by one."""

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.epsilon = nn.Parameter(torch.full((8,), 1 - offset)), 1e-5

        def forward(self, x):
            wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.epsilon)
            if casting == "llama":
                return ((offset + self.weight.float()) * wide.to(x.dtype).float()).to(x.dtype)
            return (wide * (offset + self.weight.float())).to(x.dtype)

    record = patch(Norm())
    recipe = record.changes[0].recipe
    assert (recipe.casting, recipe.offset, recipe.eps) == (casting, offset, 1e-5)


def test_bad_calls_raise_one_clear_error():
    """Nothing replaced, a wrong name or double patching would pass without a word."""
    with pytest.raises(InvalidInput, match="found nothing in this Linear"):
        patch(nn.Linear(3, 4))
    with pytest.raises(UnknownName, match="no kernel is named 'swish'; there are rms_norm"):
        patch(make(), ["swish"])
    with pytest.raises(InvalidInput, match=r"write \['rope'\]"):
        patch(make(), "rope")
    with pytest.raises(InvalidInput, match="kernels is empty"):
        patch(make(), [])
    model = make()
    with patch(model):
        with pytest.raises(InvalidInput, match="this model runs linear_cross_entropy already"):
            patch(model)
        with pytest.raises(InvalidInput, match=r"LlamaRMSNorm 'model.layers.0.input_layernorm' runs rms_norm already"):
            patch(model, ["rms_norm"])
        with pytest.raises(InvalidInput, match="runs rope already"):
            patch(model.model.layers[1], ["rope"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch(model)  # after undoing it can be patched again


def test_mixtures_of_experts_keep_their_own_loss():
    """A loss with a term for the router would lose it."""
    config = transformers.MixtralConfig(**SIZES, num_local_experts=2, output_router_logits=True)
    model = transformers.MixtralForCausalLM(config).train()
    expected = loss_and_gradients(model, **batch())
    with pytest.warns(UserWarning, match="MixtralForCausalLM for linear_cross_entropy: its loss is more than"):
        record = patch(model)
    assert record.counts == {"rms_norm": 5, "rope": 2}
    assert_same_step(loss_and_gradients(model, **batch()), expected)


def test_repr_says_what_runs_where():
    """The record would not tell a user what was replaced."""
    model = make("gemma")
    record = patch(model)
    expected = (
        "geglu: 2 GemmaMLP; linear_cross_entropy: 1 GemmaForCausalLM; rms_norm: 5 GemmaRMSNorm; rope: 2 GemmaAttention"
    )
    assert repr(record) == f"<Patch {expected}>"
    record.undo()
    assert repr(record) == f"<Patch (undone) {expected}>"


def test_patch_and_tiles_go_together_in_any_order_of_undoing():
    """Undoing one change of a module would undo the other too."""
    model, inputs = make(), batch()
    before = loss_and_gradients(model, **inputs)
    record = patch(model)
    tiles = [tiled(layer.mlp, 3) for layer in model.model.layers]
    assert_same_step(loss_and_gradients(model, **inputs), before)
    record.undo()
    assert_active(model, {"tiled": 2})
    assert_same_step(loss_and_gradients(model, **inputs), before)
    for change in tiles:
        change.undo()
    assert torch.equal(loss_and_gradients(model, **inputs)[0], before[0])
