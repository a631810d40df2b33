"""The conformance checks of rules must catch rules that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import assay.testing
from assay.models.mlp import MLP
from assay.rules.backprop import Backprop
from assay.rules.rule import Rule
from assay.testing.rules import CHECKS, RuleCase, two_blobs


def _case(make: Callable[[nn.Module], Rule]) -> Callable[[], RuleCase]:
    def factory() -> RuleCase:
        rule = make(MLP((16,), 2, width=12, generator=torch.Generator().manual_seed(0)))
        return RuleCase(rule, *two_blobs(16), limit=rule.model)

    return factory


class Overwrites(Backprop):
    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.zero_grad()
        return super().backward(x, y)


class TrainsTooMuch(Backprop):
    def groups(self) -> list[list[nn.Parameter]]:
        return [super().groups()[0][:2]]


class KeepsGraph(Backprop):
    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        super().backward(x, y)
        return {"loss": self.loss(self.model(x), y)}


class SaysLocal(Backprop):
    local = True

    def groups(self) -> list[list[nn.Parameter]]:
        return [
            list(self.model.block1.parameters()),
            list(self.model.block2.parameters()),
            list(self.model.head.parameters()),
        ]


class LeavesEvaluationMode(Backprop):
    def predict(self, x: Tensor) -> Tensor:
        self.eval()
        with torch.no_grad():
            return self.model(x)


class BuildsGraph(Backprop):
    def predict(self, x: Tensor) -> Tensor:
        return self.model(x)


class DrawsGlobally(Backprop):
    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return super().backward(x + 0.01 * torch.randn(x.shape), y)


class ForgetsState(Backprop):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.count = 0

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.count += 1
        return super().backward(x * self.count, y)


class SharesMemory(Backprop):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("alias", next(model.parameters()).detach()[:2])


class Climbs(Backprop):
    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        loss = -F.cross_entropy(self.model(x), y)
        loss.backward()
        return {"loss": loss.detach()}


class UnrelatedHead(Backprop):
    def head(self) -> nn.Linear:
        return nn.Linear(12, 2)


class Unpicklable(Backprop):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, lambda scores, y: F.cross_entropy(scores, y))


def _raises(check: Callable[..., None], factory: Callable[[], RuleCase]) -> bool:
    try:
        check(factory)
    except Exception:
        return True
    return False


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (Overwrites, "backward-accumulates"),
        (TrainsTooMuch, "gradients-go-to-trained-parameters"),
        (TrainsTooMuch, "phases-leave-others-alone"),
        (KeepsGraph, "gradients-go-to-trained-parameters"),
        (SaysLocal, "blocks-are-local"),
        (LeavesEvaluationMode, "prediction-leaves-no-trace"),
        (BuildsGraph, "prediction-leaves-no-trace"),
        (DrawsGlobally, "global-generator-is-untouched"),
        (DrawsGlobally, "same-seed-same-step"),
        (ForgetsState, "state-resumes-bit-equal"),
        (ForgetsState, "fit-resumes-bit-equal"),
        (SharesMemory, "state-resumes-bit-equal"),
        (Climbs, "learns-two-blobs"),
        (Climbs, "limit-equals-backprop"),
        (UnrelatedHead, "head-reads-last-features"),
        (Unpicklable, "pickles"),
    ],
)
def test_check_catches(wrong: type[Backprop], check: str) -> None:
    """A check would let the fault pass that it is there for, or refuse a right rule."""
    assert _raises(CHECKS[check], _case(wrong))
    assert not _raises(CHECKS[check], _case(Backprop))


def test_plug_ins_use_the_same_checks() -> None:
    """The public entry point would not run these checks, or not name what failed."""
    assay.testing.check("rules", _case(Backprop))
    with pytest.raises(AssertionError, match="learns-two-blobs"):
        assay.testing.check("rules", _case(Climbs))
