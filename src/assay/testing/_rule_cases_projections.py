"""Rules with fixed random projections in tiny settings: target projection and direct feedback, dense to recurrent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.models.row_rnn import RowRNN
from assay.rules.backprop import Backprop
from assay.rules.direct_feedback import DirectFeedbackAlignment, DirectRandomTargetProjection
from assay.rules.rule import Rule
from assay.rules.target_projection import TargetProjection

__all__ = ["PROJECTION_CASES"]

IMAGE = (1, 8, 8)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _mlp() -> torch.nn.Module:
    return MLP((16,), 2, width=12, depth=2, activation="tanh", generator=_generator(0))


def _relu_mlp() -> torch.nn.Module:
    return MLP((16,), 2, width=12, depth=2, generator=_generator(0))


def _cnn() -> torch.nn.Module:
    return CNN(IMAGE, 2, channels=(4, 6), generator=_generator(0))


def _rnn() -> torch.nn.Module:
    return RowRNN(IMAGE, 2, width=12, depth=2, generator=_generator(0))


def _gru() -> torch.nn.Module:
    return RowRNN(IMAGE, 2, width=12, cell="gru", generator=_generator(0))


def _case(
    rule: Callable[..., Rule], model: Callable[[], torch.nn.Module], epochs: int, **options: Any
) -> Callable[[], object]:
    def factory() -> object:
        from assay.testing.rules import RuleCase, two_blobs

        if rule is not Backprop:
            options.update(num_classes=2, generator=_generator(2))
        inputs = two_blobs(*((16,) if model in (_mlp, _relu_mlp) else IMAGE))
        return RuleCase(rule(model(), **options), *inputs, epochs=epochs)

    return factory


PROJECTION_CASES: dict[str, Callable[[], object]] = {
    "target-projection": _case(TargetProjection, _mlp, 10),
    "target-projection-l1-greedy": _case(TargetProjection, _relu_mlp, 24, local_loss="l1", order="greedy"),
    "target-projection-cnn": _case(TargetProjection, _cnn, 12),
    "target-projection-rnn": _case(TargetProjection, _rnn, 12),
    "target-projection-gru": _case(TargetProjection, _gru, 12, projection="sign", steps="last"),
    "backprop-rnn": _case(Backprop, _rnn, 10),
    "direct-random-target-projection": _case(DirectRandomTargetProjection, _mlp, 10),
    "direct-random-target-projection-rnn": _case(DirectRandomTargetProjection, _rnn, 12),
    "direct-feedback-alignment": _case(DirectFeedbackAlignment, _mlp, 10),
    "direct-feedback-alignment-cnn": _case(DirectFeedbackAlignment, _cnn, 12),
}
