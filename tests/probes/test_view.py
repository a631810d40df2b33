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


class Sweep(nn.Module):
    """Predicts by running the second layer for every class, gives features of one run, and leaves the third alone."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))

    def predict(self, x):
        """Return scores of three runs at once."""
        return self.model[3](self.model[1](torch.stack([self.model[0](x)] * 3)).sum(-1).T)

    def features(self, x):
        """Run the second layer twice."""
        return {"1": self.model[1](self.model[1](self.model[0](x)))}

    def head(self):
        """Return none."""
        return None


def test_layers_under_a_rule_are_those_of_its_features():
    """A layer would be read while it runs for every class at once, or its absence end the run."""
    rule, x = Sweep(), torch.randn(6, 4)
    view = View(rule.model, rule=rule)
    seen, outputs = view.observe_layers(x, ["0", "1", "2", "3"])
    assert list(outputs) == ["0", "1", "3"]
    assert torch.equal(outputs["1"], rule.features(x)["1"]) and torch.equal(seen.features, outputs["1"])
    assert torch.equal(outputs["3"], seen.scores)
    assert view.activations(x, ["2"]) == {}
    assert not any(layer._forward_hooks for layer in rule.model)


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


class Layers(nn.Module):
    """Layers that run twice, in another order, with an in-place operation and a tuple as output."""

    def __init__(self):
        super().__init__()
        self.head, self.body, self.relu = nn.Linear(6, 3), nn.Linear(4, 6), nn.ReLU(inplace=True)
        self.recurrent, self.unused = nn.LSTM(6, 6, batch_first=True), nn.Linear(2, 2)

    def forward(self, x):
        """Run everything but `unused`."""
        states, _ = self.recurrent(self.relu(self.body(x))[:, None])
        return self.head(self.relu(states[:, 0]))


def test_layers_outputs_in_one_pass():
    """An in-place ReLU changes what the layer before it gave, a second run overwrites the first, hooks stay."""
    model, x = Layers(), torch.randn(5, 4)
    view = View(model)
    found = view.activations(x, ["relu", "body", "recurrent"])
    assert list(found) == ["body", "relu", "recurrent", "relu#2"]
    assert torch.equal(found["body"], model.body(x)) and torch.equal(found["relu"], F.relu(model.body(x)))
    assert torch.equal(found["recurrent"], model.recurrent(found["relu"][:, None])[0])
    assert torch.equal(found["relu#2"], F.relu(found["recurrent"][:, 0]))
    seen, caught = view.observe_layers(x, ["head"])
    assert torch.equal(caught["head"], seen.scores) and seen.head is model.head
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_layers_are_named_or_found_by_kind():
    """A misspelt layer is silently left out, or a container counts as a layer."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    view = View(model)
    assert view.layers(kinds=(nn.Linear, nn.ReLU)) == ["0.0", "0.1", "1"] == view.layers()
    assert view.layers(["0"]) == ["0"]
    for names, kinds, said in (
        (["0.2"], nn.Module, "no layer '0.2'; did you mean '0.1'"),
        ([""], nn.Module, "no layer ''"),
        (None, (nn.Conv2d, nn.GELU), "no layer of type Conv2d, GELU"),
    ):
        with pytest.raises(InvalidInput, match=said):
            view.layers(names, kinds)


def test_layers_that_cannot_be_read_say_so():
    """A layer that never ran is missing without a word, or rows that are no samples are taken for them."""
    with pytest.raises(InvalidInput, match="'unused' did not run"):
        View(Layers()).activations(torch.randn(5, 4), ["body", "unused"])
    turned = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (2, 6)), nn.Linear(6, 3))
    with pytest.raises(InvalidInput, match=r"layer '0' gave \(12,\) for 2 samples"):
        View(turned).activations(torch.randn(2, 2, 3), ["0"])


class Heads(nn.Module):
    """Two heads on one body; the second runs last and is the wider one."""

    def __init__(self, form):
        super().__init__()
        self.body, self.first, self.second, self.form = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 7), form

    def forward(self, x):
        """Return both."""
        scores = self.first(F.relu(self.body(x)))
        return self.form(scores, self.second(scores))


@pytest.mark.parametrize(
    "form,pick,said",
    [
        (lambda a, b: (a, b), lambda output: output[0], r"tuple of 2 \(0, 1\).*output\[0\]"),
        (lambda a, b: {"class": a, "box": b}, lambda output: output["class"], r"dict of 2 \('class', 'box'\)"),
    ],
)
def test_a_model_with_two_heads_asks_which(form, pick, said):
    """One of two heads is measured, and nobody said that it should be; or the last head's features are taken."""
    model, x = Heads(form), torch.randn(6, 4)
    with pytest.raises(InvalidInput, match=said):
        View(model).scores(x)
    view = View(model, scores=pick)
    scores, features, head = view.observe(x)
    assert head is model.first and torch.equal(features, F.relu(model.body(x))) and torch.equal(scores, head(features))
    parameters = {name: p.detach() for name, p in view.parameters().items()}
    assert torch.allclose(view.functional(parameters, x), scores)
    scaled = View(model, scores=lambda output: pick(output) / 2)
    assert torch.equal(scaled.scores(x), scores / 2)
    with pytest.raises(InvalidInput, match="which head is measured is unknown"):
        scaled.observe(x)
    with pytest.raises(InvalidInput, match="not both"):
        View(model, rule=Rule(), scores=pick)


def test_the_head_is_the_one_that_gave_the_scores():
    """An auxiliary head that runs after the head of `.logits` lends its features to NC3."""
    model, x = Heads(lambda a, b: SimpleNamespace(logits=a, boxes=b)), torch.randn(6, 4)
    assert View(model).observe(x).head is model.first
