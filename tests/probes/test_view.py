from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.probes.view import View


class Net(nn.Module):
    """Two linear layers that run in another order than they are defined in."""

    def __init__(self, output=lambda scores: scores):
        super().__init__()
        self.head, self.body, self.output = nn.Linear(5, 3), nn.Linear(4, 5), output

    def forward(self, x):
        """Run body, then head."""
        return self.output(self.head(F.relu(self.body(x))))


def test_features_are_what_the_last_linear_layer_read():
    """Features come from the layer defined last rather than run last, or from before the activation."""
    model, x = Net(), torch.randn(6, 4)
    view = View(model)
    scores, features, head = view.observe(x)
    assert head is model.head is view.head()
    assert torch.equal(features, F.relu(model.body(x))) and torch.equal(scores, model(x))
    assert list(view.features(x)) == ["head"]
    assert torch.equal(F.linear(features, head.weight, head.bias), scores)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_one_forward_pass_serves_scores_and_features():
    """Every quantity costs its own forward pass."""
    calls, model = [], Net()
    model.register_forward_hook(lambda *_: calls.append(1))
    View(model).observe(torch.randn(2, 4))
    assert len(calls) == 1


def test_outputs_with_logits_and_mappings_as_inputs():
    """Models in the style of transformers are refused."""
    model, x = Net(lambda scores: SimpleNamespace(logits=scores)), torch.randn(2, 4)
    assert torch.equal(View(model).scores({"x": x}), model(x).logits)


def test_compiled_models_are_seen_through():
    """A hook on a compiled model never runs."""
    model, x = Net(), torch.randn(3, 4)
    expected = View(model).observe(x)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    in_place = Net()
    in_place.load_state_dict(model.state_dict())
    in_place.compile(backend="eager")
    in_place(x)
    for each in (compiled, in_place):
        seen = View(each).observe(x)
        assert torch.equal(seen.features, expected.features) and seen.head is not None
    assert View(nn.DataParallel(model)).model is model


def test_a_convolutional_network():
    """Features of a flattened image are refused or have another shape."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, 3))
    assert View(model).observe(torch.randn(5, 1, 4, 4)).features.shape == (5, 8)


class Rule:
    """Predicts by its own means."""

    def predict(self, x):
        """Return scores that the model does not give."""
        return x[:, :3]

    def features(self, x):
        """Return two layers."""
        return {"first": x, "last": x.reshape(len(x), 2, 2)}

    def head(self):
        """Return none."""
        return None


def test_a_rule_is_asked():
    """The model's forward pass is measured although the rule predicts otherwise."""
    x = torch.randn(6, 4)
    view = View(Net(), rule=Rule())
    assert torch.equal(view.scores(x), x[:, :3]) and view.head() is None
    scores, features, head = view.observe(x)
    assert torch.equal(scores, x[:, :3]) and torch.equal(features, x) and head is None


def test_functional_differentiates_without_touching_the_model():
    """The gradient is wrong, or lands in the model's own .grad."""
    model, x = Net(), torch.randn(2, 4)
    view = View(model)
    parameters = {name: 2 * p.detach() for name, p in view.parameters().items()}
    assert torch.equal(
        view.functional(parameters, x), F.linear(F.relu(2 * model.body(x)), *[2 * p for p in model.head.parameters()])
    )
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "model,x,message",
    [
        (nn.Sequential(nn.Flatten(), nn.Tanh()), torch.ones(2, 3), "ran no torch.nn.Linear"),
        (nn.Linear(3, 2), torch.ones(2, 5, 3), "must return class scores"),
        (nn.Sequential(nn.Linear(3, 2), nn.Flatten()), torch.ones(2, 5, 3), "one vector per sample"),
        (nn.LSTM(3, 2), torch.ones(2, 5, 3), "must return class scores"),
    ],
)
def test_networks_that_cannot_be_measured_say_so(model, x, message):
    """A network without a usable head fails deep inside or gives features of something else."""
    with pytest.raises(InvalidInput, match=message):
        View(model).observe(x)


def test_arguments_are_checked():
    """A function passes as a model, or an optimizer as a rule."""
    with pytest.raises(InvalidInput, match=r"torch.nn.Module"):
        View(torch.relu)
    with pytest.raises(InvalidInput, match="predict, features and head"):
        View(Net(), rule=object())
