"""Direct random feedback against the hook of DRTP's code, backpropagation where they agree, and its memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.lab.cost import counted
from assay.models.mlp import MLP
from assay.models.row_rnn import RowRNN
from assay.rules.backprop import Backprop
from assay.rules.direct_feedback import DirectFeedbackAlignment, DirectRandomTargetProjection


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(12, *(shape or (6,)), generator=_generator(1)).double(), torch.arange(12) % 3


def _mlp(depth: int = 2) -> MLP:
    return MLP((6,), 3, width=5, depth=depth, activation="tanh", generator=_generator()).double()


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class _Hook(torch.autograd.Function):
    """What stands behind each activation in the DRTP code: its backward pass drops what comes and gives the feedback."""

    @staticmethod
    def forward(ctx, output: Tensor, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(feedback)
        return output.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0].view_as(gradient), None


@pytest.mark.parametrize("rule_class", [DirectRandomTargetProjection, DirectFeedbackAlignment])
def test_gradients_are_those_of_hooked_backpropagation(rule_class: type) -> None:
    """Hidden layers would not get B^T y* (DRTP) or B^T e (DFA) at their activations, or not through their own slope."""
    model, (x, y) = _mlp(), _batch()
    rule = rule_class(model, 3, generator=_generator(2))
    e = (model(x).softmax(1) - F.one_hot(y, 3)).detach() / len(x)
    classes = e if rule_class is DirectFeedbackAlignment else F.one_hot(y, 3).double() / len(x)
    h = x
    for i, block in enumerate((model.block1, model.block2)):
        h = _Hook.apply(block(h), classes @ rule.get_buffer(f"feedback{i}"))
    loss = F.cross_entropy(model.head(h), y)
    loss.backward()
    expected = _gradients(model)
    rule.zero_grad(set_to_none=True)
    logs = rule.backward(x, y)
    assert logs["loss"].item() == pytest.approx(loss.item())
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


def test_alignment_with_the_true_weights_is_backprop() -> None:
    """With one hidden layer and B = W_2 direct feedback alignment is backpropagation."""
    model, (x, y) = _mlp(depth=1), _batch()
    rule = DirectFeedbackAlignment(model, 3)
    rule.feedback0.copy_(model.head.weight.detach())
    rule.backward(x, y)
    found = _gradients(model)
    rule.zero_grad(set_to_none=True)
    Backprop(model).backward(x, y)
    for name, expected in _gradients(model).items():
        torch.testing.assert_close(found[name], expected)


def test_the_same_feedback_at_every_step_of_a_recurrent_layer() -> None:
    """A recurrent layer would get the label at its last step only, or through time."""
    model, (x, y) = RowRNN((4, 6), 3, width=5, generator=_generator()).double(), _batch(4, 6)
    rule = DirectRandomTargetProjection(model, 3, generator=_generator(2))
    rule.backward(x, y)
    cell, h, expected = model.block1.cell, torch.zeros(12, 5, dtype=torch.float64), 0.0
    for t in range(4):
        z = x[:, t] @ cell.weight_ih_l0.T + h @ cell.weight_hh_l0.T + cell.bias_ih_l0 + cell.bias_hh_l0
        before, h = h, z.tanh().detach()
        expected = expected + (rule.feedback0[y] / 12 * (1 - h**2)).T @ before
    torch.testing.assert_close(cell.weight_hh_l0.grad, expected)


def test_memory_is_flat_for_targets_and_grows_for_errors() -> None:
    """The rule that need not wait would keep every layer, or the one that waits would be counted as if it did not."""
    saved: dict[str, list[float]] = {}
    for rule_class in (DirectRandomTargetProjection, DirectFeedbackAlignment):
        for depth in (2, 6):
            model = MLP((32,), 10, width=32, depth=depth, activation="tanh")
            rule, cost = rule_class(model, 10, loss=nn.CrossEntropyLoss()), {}
            with counted(cost, rule):
                rule.backward(torch.ones(16, 32), torch.arange(16) % 10)
            saved.setdefault(rule_class.__name__, []).append(cost["saved_bytes"] / (16 * 32 * 4))
    assert saved["DirectRandomTargetProjection"] == [2, 2]
    assert saved["DirectFeedbackAlignment"][1] - saved["DirectFeedbackAlignment"][0] == 4


@pytest.mark.parametrize("rule_class", [DirectRandomTargetProjection, DirectFeedbackAlignment])
@pytest.mark.parametrize(
    "options", [{"num_classes": 4}, {"model": MLP((6,), 3, depth=0)}, {"loss": lambda s, y: s}, {"input_shape": (7,)}]
)
def test_refuses_what_it_cannot_train_before_training(rule_class: type, options: dict) -> None:
    """A wrong network or loss would be noticed only in training."""
    with pytest.raises(InvalidInput):
        rule_class(**({"model": MLP((6,), 3), "num_classes": 3} | options))
