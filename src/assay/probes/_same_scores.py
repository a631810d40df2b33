"""Whether a rule predicts by the model's own forward pass, as probes that differentiate it must know."""

from __future__ import annotations

from typing import Any

import torch

from assay.probes.view import View

__all__ = ["why_not_own_scores"]

DIFFERENT = "the rule does not predict by the model's own forward pass"
NO_PASS = "the model has no forward pass of its own from inputs to scores, and the rule predicts in its own way"


def why_not_own_scores(view: View, x: Any) -> str | None:
    """Return why the scores of a batch are not those of the model's own forward pass; None if they are.

    Args:
        view: The network; without a rule its scores are its own.
        x: Inputs of one batch. The two ways are compared up to rounding.
    """
    if view.rule is None:
        return None
    with torch.no_grad():
        predicted = view.scores(x)
        try:
            own = view.functional({}, x)
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
            return NO_PASS
    same = own.shape == predicted.shape and torch.allclose(own.to(predicted.dtype), predicted, rtol=1e-3, atol=1e-5)
    return None if same else DIFFERENT
