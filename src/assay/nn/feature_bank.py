"""A bank of recent features with their labels and sample ids, to compare a mini-batch with more than itself.

Papers: "Rethinking Supervised Pre-training for Better Downstream Transferring" (arXiv:2110.06014), which compares with
earlier samples; the first-in-first-out queue is that of He et al. (arXiv:1911.05722), one slot per training sample that
of Wu et al. (arXiv:1805.01978).

Shapes: N slots of D features; labels (N,), ids (N,), -1 in an empty slot.

Departures: a slot keeps the id of its sample, so that a loss can leave a sample's own feature out, also where a queue
holds it twice. Features are stored at unit length. In a queue they should come from a slowly moving copy of the encoder
(`torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(0.999)`), or the oldest are stale.

Cost: 4 N (D + 4) bytes; no gradient flows into the bank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["FeatureBank"]

MODES = ("per-sample", "queue")


class FeatureBank(nn.Module):
    """Recent features, labels and sample ids as buffers, saved with the state dict.

    Args:
        size: Slots N: the number of training samples, or the length of the queue.
        dim: Features D.
        mode: "per-sample": sample i has slot i, overwritten whenever it comes by. "queue": the newest replace the
            oldest.

    Raises:
        InvalidInput: On a size below 1 or an unknown mode.

    Example:
        >>> bank = FeatureBank(size=4, dim=2)
        >>> bank.update(torch.tensor([[3.0, 4.0]]), torch.tensor([7]), torch.tensor([2]))
        >>> bank.keys[2], bank.targets[2].item(), bank.filled
        (tensor([0.6000, 0.8000]), 7, 1)
    """

    keys: Tensor
    targets: Tensor
    ids: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int, mode: str = "per-sample") -> None:
        super().__init__()
        if min(size, dim) < 1:
            raise InvalidInput(f"a bank needs a size and a dim of at least 1; got {size} and {dim}")
        if mode not in MODES:
            raise InvalidInput(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
        self.mode = mode
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("targets", torch.zeros(size, dtype=torch.long))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def filled(self) -> int:
        """How many slots hold a feature."""
        return int((self.ids >= 0).sum())

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor, indices: Tensor) -> None:
        """Store a batch; call it after the backward pass, which still reads the old features.

        Args:
            features: (B, D), of any length; stored at unit length.
            targets: Labels (B,).
            indices: Which training samples they are (B,), 0 or larger.

        Raises:
            InvalidInput: If shapes or types do not fit, an index is out of range or occurs twice in a batch of a
                per-sample bank, or a batch is longer than the queue.
        """
        self._check(features, targets, indices)
        slots = indices
        if self.mode == "queue":
            slots = (self.oldest + torch.arange(len(features), device=self.oldest.device)) % len(self)
            self.oldest.copy_((self.oldest + len(features)) % len(self))
        self.keys[slots] = F.normalize(features.to(self.keys.dtype), dim=1)
        self.targets[slots] = targets.long()
        self.ids[slots] = indices.long()

    def _check(self, features: Tensor, targets: Tensor, indices: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.keys.shape[1]:
            raise InvalidInput(f"features must be (B, {self.keys.shape[1]}); got {tuple(features.shape)}")
        for name, values in (("targets", targets), ("indices", indices)):
            if values.shape != features.shape[:1] or values.is_floating_point() or values.dtype == torch.bool:
                raise InvalidInput(
                    f"{name} must be integers ({len(features)},); got {values.dtype} {tuple(values.shape)}"
                )
        if len(indices) > len(self):
            raise InvalidInput(f"a batch of {len(indices)} does not fit a bank of {len(self)}; make the bank larger")
        low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, 0)
        if low < 0 or (self.mode == "per-sample" and high >= len(self)):
            raise InvalidInput(
                f"indices must lie in 0..{len(self) - 1}, a slot per training sample; they run from {low} to {high}"
                if self.mode == "per-sample"
                else f"indices must be 0 or larger; got {low}"
            )
        if self.mode == "per-sample" and len(indices.unique()) < len(indices):
            raise InvalidInput("indices name a sample twice; a batch may hold each only once")

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"size={len(self)}, dim={self.keys.shape[1]}, mode={self.mode!r}"
