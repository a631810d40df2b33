"""Named random streams: every draw of a trial comes from (task, seed, name), never from the arm.

Two arms of one study with the same seed therefore see the same split, the same initial weights and the same
mini-batch order (as far as their shapes agree), which makes their difference a paired one; and a new arm moves no
draw of an old one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["Streams"]


@dataclass(frozen=True)
class Streams:
    """The random streams of one trial.

    Args:
        task: What is being compared, usually the paper's id; arms of one task share their draws.
        seed: Index of the repetition, 0 or larger.

    Example:
        >>> a, b = Streams("digits", 0), Streams("digits", 0)
        >>> a.entropy("init") == b.entropy("init"), a.entropy("init") == a.entropy("order")
        (True, False)
    """

    task: str
    seed: int

    def entropy(self, name: str) -> int:
        """Return 63 bits that depend on the task, the seed and the stream's name only."""
        digest = hashlib.sha256(f"{self.task}\0{self.seed}\0{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def torch(self, name: str) -> torch.Generator:
        """Return a fresh CPU generator at the start of the named stream."""
        import torch

        return torch.Generator().manual_seed(self.entropy(name))

    def numpy(self, name: str) -> np.random.Generator:
        """Return a fresh NumPy generator at the start of the named stream."""
        import numpy as np

        return np.random.default_rng(self.entropy(name))
