"""The two rules that carry a learning rate to another batch size."""

from __future__ import annotations

import pytest

from assay.errors import InvalidInput
from assay.optim.batch_scaling import scale_lr


def test_the_papers_rates():
    """LAMB's recipe for BERT: 5e-3 / 2^(3 / 2) at 4096, for one."""
    assert scale_lr(5e-3, 32768, 4096) == pytest.approx(5e-3 / 2**1.5)
    assert scale_lr(0.1, 256, 8192, rule="linear") == pytest.approx(3.2)


def test_bad_arguments_are_refused():
    """A rate would come out for nonsense."""
    with pytest.raises(InvalidInput, match="rule must be one of sqrt, linear; got 'cubic'"):
        scale_lr(0.1, 1, 2, rule="cubic")
    with pytest.raises(InvalidInput, match="at least 1; got 0 and 2"):
        scale_lr(0.1, 0, 2)
    with pytest.raises(InvalidInput, match="base_lr"):
        scale_lr(-0.1, 1, 2)
