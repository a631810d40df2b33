"""Networks as the rules with local errors see them: what is one layer, what is computed by hand, what is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from assay.errors import InvalidInput
from assay.models.mlp import MLP
from assay.rules.direct_feedback import DirectFeedbackAlignment, DirectRandomTargetProjection
from assay.rules.forward_forward import ForwardForward
from assay.rules.rule import Rule
from assay.rules.target_projection import TargetProjection

RULES = (TargetProjection, DirectRandomTargetProjection, DirectFeedbackAlignment)
Y = torch.arange(12) % 3


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(12, 6, generator=_generator(1)).double()


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize("rule_class", RULES)
def test_a_sequential_with_a_forward_of_its_own_stays_whole(rule_class: type) -> None:
    """Another network than the user's would be trained: the one without the skip connection."""
    model = nn.Sequential(_Residual(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)).double()
    rule = rule_class(model, 3, generator=_generator(2))
    rule.backward(X, Y)
    (expected,) = torch.autograd.grad(F.cross_entropy(model(X), Y), model[1].weight)
    torch.testing.assert_close(model[1].weight.grad, expected)
    assert torch.equal(rule.features(X)["0"], model[0](X))


def test_forward_forward_refuses_a_block_with_a_forward_of_its_own() -> None:
    """The block would be taken for its Linear - ReLU alone."""
    with pytest.raises(InvalidInput, match="is _Residual"):
        ForwardForward(nn.Sequential(_Residual(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 3)), 3)


@pytest.mark.parametrize("rule_class", RULES)
@pytest.mark.parametrize("what", ["weight", "bias", "spectral"])
def test_weights_that_a_hook_computes_are_trained(rule_class: type, what: str) -> None:
    """A pruned or spectrally normalised layer would get its gradient on a tensor that no optimizer has."""
    model = MLP((6,), 3, width=5, depth=1, activation="tanh", generator=_generator()).double()
    plain = rule_class(copy.deepcopy(model), 3, generator=_generator(2))
    layer = next(m for m in model.block1.modules() if isinstance(m, nn.Linear))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if what == "spectral":
            nn.utils.spectral_norm(layer)
        else:
            prune.identity(layer, what)
    rule_class(model, 3, generator=_generator(2)).backward(X, Y)
    if what == "spectral":
        assert layer.weight_orig.grad.any()
        return
    plain.backward(X, Y)
    twin = next(m for m in plain.model.block1.modules() if isinstance(m, nn.Linear))
    torch.testing.assert_close(layer.get_parameter(f"{what}_orig").grad, getattr(twin, what).grad)


@pytest.mark.parametrize("rule_class", RULES)
def test_dropout_in_place_changes_nothing(rule_class: type) -> None:
    """The slope would be taken at what dropout left over, not at the layer's output."""
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5, inplace=inplace), nn.Linear(8, 3)).double()
        rule = rule_class(model, 3, generator=_generator(2))
        torch.manual_seed(5)
        rule.backward(X, Y)
        found.append(model[0].weight.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("rule_class", RULES)
def test_autocast_trains_the_same_layers(rule_class: type) -> None:
    """Scores in bfloat16 would meet a projection in float32, and fail."""
    found = []
    for enabled in (False, True):
        model = MLP((6,), 3, width=5, depth=2, activation="tanh", generator=_generator())
        rule = rule_class(model, 3, generator=_generator(2))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            rule.backward(X.float(), Y)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    exact, mixed = found
    assert mixed.dtype == torch.float32 and (mixed - exact).norm() < 0.02 * exact.norm()


def _convolutional(rule_class: type, **options: object) -> Rule:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    return rule_class(model, 3, input_shape=(1, 4, 4), **options)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        *((partial(_convolutional, rule_class), (12, 1, 4, 4)) for rule_class in RULES),
        (partial(_convolutional, TargetProjection, order="greedy"), (12, 1, 4, 4)),
        (lambda: ForwardForward(MLP((6,), 3, width=5, depth=2), 3), (12, 6)),
    ],
    ids=["tp", "drtp", "dfa", "tp-greedy", "ff"],
)
def test_no_gradients_are_an_error_without_autograd(make: Callable[[], Rule], shape: tuple[int, ...]) -> None:
    """Under `torch.no_grad()` some layers would silently not train; backpropagation raises there."""
    rule = make()
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        rule.backward(torch.ones(shape), Y)
