"""Rows a few at a time: several passes over a block that stays in the cache cost as little as one over all of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["row_blocks", "working_dtype"]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums and products of a type are computed: float32 for half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def row_blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Yield slices that cover the rows: 1 MiB of float32 each per thread of a CPU, 256 MiB on anything else."""
    elements = 2**18 * torch.get_num_threads() if device.type == "cpu" else 2**26
    size = max(1, elements // max(columns, 1))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
