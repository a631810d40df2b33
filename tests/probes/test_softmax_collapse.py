import math

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.probes.softmax_collapse import SoftmaxCollapse


def measured(scores, targets, dtype=torch.float32):
    """The values of one batch."""
    probe = SoftmaxCollapse(dtype)
    probe.update(scores, targets)
    return probe.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_threshold_is_that_of_absorption(dtype):
    """With scores [t, 0] the denominator is 1 + exp(-t), which rounds to 1 from t = log(2 / eps) on."""
    threshold = math.log(2 / torch.finfo(dtype).eps)
    for factor, expected in ((0.98, 0.0), (1.02, 1.0)):
        scores = torch.tensor([[factor * threshold, 0.0]], dtype=torch.float64)
        assert measured(scores, torch.tensor([0]), dtype)["softmax_collapse"] == expected


def test_shares_grow_with_the_gap_and_ignore_shifts():
    """The share is not monotone in the scale of the scores, or depends on a common constant."""
    scores = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    targets = scores.argmax(dim=1)
    shares = [measured(scale * scores, targets)["softmax_collapse"] for scale in (1, 10, 20, 40, 1000)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] > 0.9
    assert measured(16 * scores + 64, targets)["softmax_collapse"] == pytest.approx(shares[2], abs=0.1)


def test_zero_terms_are_torchs_exact_zeros():
    """Counts of zero losses differ from those of torch's own cross-entropy."""
    scores = 12 * torch.randn(2000, 5, generator=torch.Generator().manual_seed(1))
    targets = scores.argmax(dim=1)
    targets[:50] = 0
    expected = (F.cross_entropy(scores, targets, reduction="none") == 0).float().mean().item()
    assert 0.05 < expected < 0.95
    assert measured(scores, targets)["zero_terms"] == pytest.approx(expected)


def test_a_wrong_answer_can_be_collapsed_but_has_a_loss():
    """A collapsed softmax on the wrong class counts as a zero loss."""
    assert measured(torch.tensor([[50.0, 0.0]]), torch.tensor([1])) == {"softmax_collapse": 1.0, "zero_terms": 0.0}


def test_collapsed_and_fitted_means_no_gradient():
    """What the probe calls collapsed still learns."""
    scores = torch.tensor([[17.0, 0.0, 0.0]], requires_grad=True)
    F.cross_entropy(scores - scores.amax(), torch.tensor([0])).backward()
    share = measured(scores.detach(), torch.tensor([0]))
    assert share["zero_terms"] == float(bool(F.cross_entropy(scores, torch.tensor([0])) == 0))
    p = torch.softmax(scores.detach(), dim=1)[0, 0]
    assert (share["softmax_collapse"] == 1.0) == (p.item() == 1.0)


def test_scores_that_are_not_finite_are_not_counted_silently():
    """A diverged network looks as if nothing had collapsed."""
    probe = SoftmaxCollapse()
    probe.update(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert all(math.isnan(v) for v in probe.compute().values())
    assert "NaN or infinity" in probe.skipped["softmax_collapse"]


def test_dtype_must_be_floating():
    """A type without rounding is accepted, or a name cannot be given."""
    assert SoftmaxCollapse("float16").loss_dtype is torch.float16
    for dtype in (torch.int64, "int8", "float12", "nn"):
        with pytest.raises(InvalidInput, match="floating point type"):
            SoftmaxCollapse(dtype)
