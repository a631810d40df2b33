"""How a learning rate found at one batch size is carried over to another.

Square root: Krizhevsky (2014, arXiv:1404.5997), and LAMB (arXiv:1904.00962), which takes 5e-3 at 32768 for BERT and
lr(B) = 5e-3 sqrt(B / 32768) below. Linear: Goyal et al. (2017, arXiv:1706.02677), for momentum SGD and only as long as
the batch stays well below the number of samples that gradients' noise allows.
"""

from __future__ import annotations

import math

from assay.errors import InvalidInput

__all__ = ["scale_lr"]

POWERS = {"sqrt": 0.5, "linear": 1.0}


def scale_lr(base_lr: float, base_batch: int, batch: int, rule: str = "sqrt") -> float:
    """Return the learning rate for another batch size.

    Args:
        base_lr: Learning rate at `base_batch`, 0 or more.
        base_batch: Samples per batch it was found with.
        batch: Samples per batch it is for.
        rule: "sqrt" or "linear".

    Raises:
        InvalidInput: If a batch size is below 1, the rate is out of range, or the rule is unknown.

    Example:
        >>> scale_lr(5e-3, 32768, 512), scale_lr(0.1, 256, 1024, "linear")
        (0.000625, 0.4)
    """
    if rule not in POWERS:
        raise InvalidInput(f"rule must be one of {', '.join(POWERS)}; got {rule!r}")
    if base_batch < 1 or batch < 1:
        raise InvalidInput(f"batch sizes must be at least 1; got {base_batch} and {batch}")
    if not 0 <= base_lr < math.inf:
        raise InvalidInput(f"base_lr must be a finite number of at least 0; got {base_lr}")
    return base_lr * (batch / base_batch) ** POWERS[rule]
