"""The fake-quantised layer against autograd through its rounded numbers, and the replacement of a model's layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm

from assay.compress.fake_quantization import FakeQuantLinear, fake_quantize_
from assay.compress.four_bit import FP4, Int4
from assay.errors import InvalidInput
from assay.models.transformer_lm import TransformerLM

WEIGHT, ACT = Int4(group=8), Int4(group=4, outliers=1, symmetric=True)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_value_and_gradients_are_those_of_the_rounded_numbers() -> None:
    """A gradient, dW = dy^T A(x) or dx = dy Q(W) would read a number that is not rounded, or dy be rounded."""
    layer = FakeQuantLinear(6, 4, weight=WEIGHT, act=ACT, generator=torch.Generator().manual_seed(0))
    x = numbers(3, 5, 6).requires_grad_()
    # groups of 8 of the flattened 4 x 6 weight: they go across its rows
    rounded_weight = WEIGHT(layer.weight.detach().view(3, 8)).view(4, 6).requires_grad_()
    rounded = ACT(x.detach()).requires_grad_()
    expected = F.linear(rounded, rounded_weight, layer.bias)
    upstream = numbers(3, 5, 4, seed=1)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, [x, layer.weight, layer.bias], upstream),
        torch.autograd.grad(expected, [rounded, rounded_weight, layer.bias], upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_without_formats_it_is_a_linear_layer() -> None:
    """None would round, or initial weights not be `nn.Linear`'s."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Linear(6, 4)
        torch.manual_seed(0)
        layer = FakeQuantLinear(6, 4, weight=None, act=None)
    x = numbers(2, 6)
    assert torch.equal(layer(x), plain(x))
    assert layer.state_dict().keys() == plain.state_dict().keys()


def test_replacement_and_its_undoing() -> None:
    """An optimizer would lose the weights, heads be quantised, or a model not come back."""
    model = TransformerLM((8,), 11, width=16, depth=2, generator=torch.Generator().manual_seed(0))
    weights = list(model.parameters())
    tokens = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(1))
    before, keys = model(tokens), model.state_dict().keys()
    record = fake_quantize_(model, weight=Int4(group=16), act=Int4(group=16, outliers=2, symmetric=True))
    assert len(record.names) == 2 * 4 and not any("head" in name for name in record.names)
    assert model.state_dict().keys() == keys
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))
    assert 1e-3 < (model(tokens) - before).abs().max() < 1
    with pytest.raises(InvalidInput, match="found no"):
        fake_quantize_(model)
    record.undo()
    record.undo()
    assert torch.equal(model(tokens), before)
    assert not any(isinstance(module, FakeQuantLinear) for module in model.modules())


def test_a_shared_layer_is_replaced_once_and_subclasses_stay() -> None:
    """A layer in two places would become two, or a layer with a forward of its own lose it."""
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "deeper": nn.Sequential(nn.ReLU(), shared)})
    model["own"] = FakeQuantLinear(4, 4, weight=None, act=None)
    own = model["own"]
    with fake_quantize_(model, weight=FP4(group=4, outliers=1), act=None, skip=()) as record:
        assert record.names == ("a", "deeper.1")
        assert model["a"] is model["deeper"][1] and model["a"] is not shared and model["own"] is own
        assert "of 2 layers" in repr(record)
    assert model["a"] is shared and model["deeper"][1] is shared


def test_a_second_name_in_the_same_module_is_replaced_too() -> None:
    """One of two names would go on in full precision."""
    model = nn.Module()
    model.first = model.second = shared = nn.Linear(4, 4)
    with fake_quantize_(model, weight=FP4(group=4), act=None) as record:
        assert record.names == ("first", "second")
        assert model.first is model.second and isinstance(model.second, FakeQuantLinear)
    assert model.first is shared and model.second is shared


def test_layers_whose_weight_is_computed_are_left_alone() -> None:
    """They would lose what computes it, or torch would raise an error of its own in the midst of the replacement."""
    normed, pruned = spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4)
    prune.l1_unstructured(pruned, "bias", 0.5)
    model = nn.Sequential(normed, pruned, nn.Linear(4, 2))
    assert fake_quantize_(model, weight=FP4(group=4), act=None).names == ("2",)
    assert model[0] is normed and model[1] is pruned


def test_undoing_keeps_weights_that_were_assigned() -> None:
    """A checkpoint loaded with `assign=True` would be lost."""
    model = nn.Sequential(nn.Linear(4, 2))
    record = fake_quantize_(model, weight=FP4(group=4), act=None)
    model.load_state_dict({"0.weight": numbers(2, 4), "0.bias": numbers(2)}, assign=True)
    loaded = list(model.parameters())
    record.undo()
    assert type(model[0]) is nn.Linear
    assert all(a is b for a, b in zip(model.parameters(), loaded, strict=True))
    assert torch.equal(model[0].weight, numbers(2, 4))


def test_a_transformer_evaluates_what_it_trains() -> None:
    """Torch's fast path would read the weights in full precision, in evaluation only and without a word."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = numbers(2, 3, 8)
    plain = model(x)
    with pytest.raises(InvalidInput, match=r"linear1 .*set_fastpath_enabled\(False\)"):
        fake_quantize_(model, weight=WEIGHT, act=ACT)
    assert type(model.linear1) is nn.Linear
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        fake_quantize_(model, weight=WEIGHT, act=ACT)
        with torch.no_grad():
            evaluated = model(x)
        torch.testing.assert_close(evaluated, model.train()(x))
        assert (evaluated - plain).abs().max() > 1e-3
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_stochastic_rounding_is_for_training_and_from_its_generator() -> None:
    """Evaluations would be random, or noise come from the global generator."""
    form = Int4(group=8, symmetric=True, stochastic=True)
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(InvalidInput, match="generator"):
        fake_quantize_(model, act=form)
    fake_quantize_(model, weight=None, act=form, generator=torch.Generator().manual_seed(0))
    x, before = numbers(4, 8), torch.get_rng_state()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments_are_refused() -> None:
    """A typing error would train, badly."""
    with pytest.raises(InvalidInput, match="Int4"):
        FakeQuantLinear(4, 4, weight="int4")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="sizes"):
        FakeQuantLinear(0, 4)
    with pytest.raises(InvalidInput, match="sequence"):
        fake_quantize_(nn.Sequential(nn.Linear(2, 2)), skip="head")
    with pytest.raises(InvalidInput, match="found no"):
        fake_quantize_(nn.Linear(2, 2))
    with pytest.raises(InvalidInput, match=r"\(\.\.\., 4\)"):
        FakeQuantLinear(4, 4)(torch.zeros(3, 5))
