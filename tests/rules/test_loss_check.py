"""What is said of a loss before training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses.focal import FocalLoss
from assay.losses.leave_one_out import LeaveOneOutKNNLoss
from assay.losses.rescaled_mse import RescaledMSELoss
from assay.losses.sop import SOPLoss
from assay.models.mlp import MLP
from assay.rules._loss_check import check_class_loss, check_loss
from assay.rules.cascaded_forward import CascadedForward
from assay.rules.mono_forward import MonoForward

LIKE = torch.zeros(1)


def _detached(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.detach(), targets)


@pytest.mark.parametrize(
    "loss",
    [F.cross_entropy, nn.MSELoss(), nn.BCEWithLogitsLoss(), FocalLoss(), RescaledMSELoss(), LeaveOneOutKNNLoss(k=20)],
    ids=lambda loss: getattr(loss, "__name__", type(loss).__name__),
)
def test_losses_of_classes_pass(loss: nn.Module) -> None:
    """A loss of labels, or of one-hot targets, would be refused."""
    check_class_loss(loss, 3, LIKE)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.TripletMarginLoss(), "TripletMarginLoss can't be used.*missing"),
        (SOPLoss(100, 3), "SOPLoss can't be used"),
        (nn.CrossEntropyLoss(reduction="none"), r"must give one number.*shape \(256,\)"),
        (nn.CrossEntropyLoss(weight=torch.ones(7)), "CrossEntropyLoss can't be used"),
        (_detached, "_detached has no gradient"),
        (lambda scores, targets: 0.0, "gave float"),
    ],
)
@pytest.mark.parametrize("rule", [MonoForward, CascadedForward])
def test_rules_refuse_it_when_they_are_made(rule: type, loss: nn.Module, message: str) -> None:
    """The first mini-batch would end in a traceback of torch, or train nothing."""
    with pytest.raises(InvalidInput, match=message) as raised:
        rule(MLP((4,), 3, width=5), 3, loss=loss)
    assert "\n" not in str(raised.value)


def test_trying_leaves_no_trace() -> None:
    """A loss with buffers or random numbers would have moved before training begins."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(F.dropout(scores), targets)

    loss, random = Noisy(), torch.get_rng_state()
    check_loss(loss, torch.zeros(4, 3), torch.arange(4) % 3)
    assert loss.calls == 0 and torch.equal(random, torch.get_rng_state())
