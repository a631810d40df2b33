"""A batch sampler whose batch size may grow while an epoch runs, for schemes that choose it during training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from assay.errors import InvalidInput

__all__ = ["AdaptiveBatchSampler"]


class AdaptiveBatchSampler(Sampler[list[int]]):
    """Yields shuffled index batches of the size that is set at that moment.

    Every sample comes once per epoch, whatever the sizes; the last batch of an epoch may be smaller, and an epoch that
    was broken off is not continued unless its state was loaded. Use it as the
    `batch_sampler` of a `DataLoader` without workers: workers would fetch batches of an outdated size ahead.

    Args:
        num_samples: Samples of the data set.
        batch_size: First size, at least 1.
        max_batch_size: Largest size; None is `num_samples`.
        generator: Shuffles; None is a fresh one with seed 0.

    Attributes:
        batch_size: The current size.

    Raises:
        InvalidInput: If sizes are out of range, or the schedule could go beyond the data set.

    Example:
        >>> sampler = AdaptiveBatchSampler(10, batch_size=2)
        >>> sizes = []
        >>> for batch in sampler:
        ...     sizes.append(len(batch))
        ...     sampler.grow_to(3 * len(batch))
        >>> sizes, sampler.batch_size
        ([2, 6, 2], 10)
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        max_batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        largest = num_samples if max_batch_size is None else max_batch_size
        if not 1 <= batch_size <= largest <= num_samples:
            raise InvalidInput(
                "expected 1 <= batch_size <= max_batch_size <= num_samples; got "
                f"{batch_size}, {largest} and {num_samples}"
            )
        self.num_samples, self.batch_size, self.max_batch_size = num_samples, batch_size, largest
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0
        self._restored = False

    def grow_to(self, size: float) -> None:
        """Set the size for the batches to come; never below the current one nor above the largest."""
        if math.isnan(size):
            raise InvalidInput("the suggested batch size is NaN; the gradients that it comes from must be finite")
        self.batch_size = int(min(self.max_batch_size, max(self.batch_size, math.ceil(min(size, self.num_samples)))))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield an epoch, or what a restored state left of it."""
        going_on = self._restored and self._position < len(self._order)
        self._restored = False
        if not going_on:
            self._order, self._position = torch.randperm(self.num_samples, generator=self.generator), 0
        while self._position < len(self._order):
            batch = self._order[self._position : self._position + self.batch_size]
            self._position += len(batch)
            yield batch.tolist()

    def __len__(self) -> int:
        """Batches of an epoch at the current size."""
        return math.ceil(self.num_samples / self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return size, order, position and the generator's state, so that a run resumes within an epoch."""
        return {
            "batch_size": self.batch_size,
            "order": self._order,
            "position": self._position,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["batch_size"] > self.max_batch_size or len(state["order"]) not in (0, self.num_samples):
            raise InvalidInput(
                f"the state is of {len(state['order'])} samples in batches of {state['batch_size']}; this sampler has "
                f"{self.num_samples} and at most {self.max_batch_size}"
            )
        self.batch_size, self._order, self._position = state["batch_size"], state["order"], state["position"]
        self.generator.set_state(state["generator"].cpu())
        self._restored = True
