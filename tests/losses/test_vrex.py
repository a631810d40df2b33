"""V-REx against the variance of torch's own losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.losses.vrex import VRExPenalty, vrex_penalty

from .domain_batches import domains, linear


@pytest.mark.parametrize("classes", [3, 1])
def test_penalty_is_the_variance_of_the_losses(classes: int) -> None:
    """The penalty would be over n - 1, or of other losses than the head's cross-entropy."""
    (z, y), head = domains(classes=classes), linear(classes=classes)
    scores = [head(a) for a in z]
    if classes > 1:
        losses = torch.stack([F.cross_entropy(f, b) for f, b in zip(scores, y, strict=True)])
    else:
        pairs = zip(scores, y, strict=True)
        losses = torch.stack([F.binary_cross_entropy_with_logits(f[:, 0], b.double()) for f, b in pairs])
    assert torch.allclose(VRExPenalty()(z, y, head), losses.var(correction=0), rtol=1e-10)
    assert torch.allclose(vrex_penalty(z, y, head, reduction="none"), (losses - losses.mean()) ** 2, rtol=1e-10)


def test_one_domain_is_refused() -> None:
    """The variance of one loss, zero, would be trained silently."""
    (z, y), head = domains(), linear()
    with pytest.raises(InvalidInput, match="1 domain"):
        VRExPenalty()(z[:1], y[:1], head)
