"""TrAct's surgery: what it changes, what it leaves, how it is undone, and when it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from assay.errors import InvalidInput, UnknownName
from assay.nn.first_layer_surgery import tract
from assay.nn.first_layers import TrActConv2d, TrActEmbedding, TrActLinear


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


X = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def _weight_gradient(model: nn.Module, name: str = "1.weight") -> torch.Tensor:
    model.zero_grad()
    model(X).square().mean().backward()
    return dict(model.named_parameters())[name].grad.clone()  # type: ignore[union-attr]


def test_it_acts_on_the_first_layer_and_is_undone() -> None:
    """Nothing would be replaced, more than the first layer, or something would stay after undo()."""
    model = _model()
    before = _weight_gradient(model), _weight_gradient(model, "4.weight")
    attributes = set(vars(model[1]))
    record = tract(model, lam=0.2)
    assert list(record.replaced) == ["1"] and type(model[1]) is TrActConv2d and type(model[4]) is nn.Linear
    assert repr(record) == "<TrAct lam=0.2 in 1 (Conv2d)>"
    assert not torch.allclose(_weight_gradient(model), before[0])
    torch.testing.assert_close(_weight_gradient(model, "4.weight"), before[1], rtol=0, atol=0)
    record.undo()
    record.undo()
    assert type(model[1]) is nn.Conv2d and set(vars(model[1])) == attributes and not record.active
    torch.testing.assert_close(_weight_gradient(model), before[0], rtol=0, atol=0)


def test_leaving_the_block_undoes_also_after_an_error() -> None:
    """A model would stay changed behind its user's back."""
    model = _model()
    with pytest.raises(ZeroDivisionError), tract(model):
        raise ZeroDivisionError
    assert type(model[1]) is nn.Conv2d


def test_a_layer_that_was_parametrized_since_is_not_undone() -> None:
    """It would get a class that lacks the parametrized weight, and no longer run."""
    layer = nn.Linear(3, 2)
    record = tract(layer)
    torch.nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(InvalidInput, match="Parametrized"):
        record.undo()
    assert layer(torch.ones(1, 3)).shape == (1, 2) and record.active
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    record.undo()
    assert type(layer) is nn.Linear


def test_parameters_hooks_and_optimizer_stay() -> None:
    """The optimizer would train parameters that the model no longer uses, or hooks would be lost."""
    model = _model()
    optimizer, keys = torch.optim.SGD(model.parameters(), lr=0.1), list(model.state_dict())
    calls: list[int] = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    weight = model.get_parameter("1.weight")
    parameters, before = list(model.parameters()), weight.detach().clone()
    tract(model)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True)) and keys == list(model.state_dict())
    gradient = _weight_gradient(model)
    optimizer.step()
    assert calls
    torch.testing.assert_close(weight.detach(), before - 0.1 * gradient)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_changed_too(way) -> None:  # type: ignore[no-untyped-def]
    """A copy, as of an exponential moving average or of a worker, would train otherwise."""
    model = _model()
    tract(model)
    torch.testing.assert_close(_weight_gradient(way(model)), _weight_gradient(model), rtol=0, atol=0)


def test_layers_by_name_and_a_layer_itself() -> None:
    """Another layer than the named one would be changed, or a bare layer could not be."""
    model = _model()
    assert list(tract(model, ["4"]).replaced) == ["4"] and type(model[4]) is TrActLinear
    assert type(model[1]) is nn.Conv2d
    layer = nn.Embedding(4, 2)
    record = tract(layer)
    assert type(layer) is TrActEmbedding and repr(record) == "<TrAct lam=0.1 in itself (Embedding)>"


class _Special(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (nn.Sequential(nn.ReLU()), None, "found nothing in this Sequential"),
        (nn.Sequential(nn.Conv1d(1, 2, 3), nn.Linear(2, 2)), None, "the Conv1d '0' is no plain"),
        (nn.Sequential(nn.LSTM(2, 2), nn.Linear(2, 2)), None, "the LSTM '0' is no plain"),
        (_Special(2, 2), None, "this _Special is no plain"),
        (parametrizations.weight_norm(nn.Linear(2, 2)), "", "ParametrizedLinear is no plain"),
        (TrActLinear(2, 2), None, "this TrActLinear has TrAct already"),
        (nn.Embedding(2, 2, sparse=True, max_norm=1.0), None, "uses max_norm, sparse"),
        (nn.Linear(2, 2), [], "found nothing"),
    ],
)
def test_what_cannot_be_replaced_is_refused(model: nn.Module, layers: object, message: str) -> None:
    """The user would believe that TrAct is at work where it is not."""
    classes = [type(m) for m in model.modules()]
    with pytest.raises(InvalidInput, match=message):
        tract(model, layers)  # type: ignore[arg-type]
    assert [type(m) for m in model.modules()] == classes


def test_an_error_changes_nothing() -> None:
    """Half of the layers would be replaced, without a record."""
    model = _model()
    for names, kind in ((["1", "0"], InvalidInput), (["1", "conv"], UnknownName)):
        with pytest.raises(kind):
            tract(model, names)
        assert type(model[1]) is nn.Conv2d
    with pytest.raises(InvalidInput, match="lam"):
        tract(model, lam=0.0)
