"""Tables with one row per training sample: how rows are read, and what is said to an index that does not fit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["check_index", "check_sizes", "rows", "small_normal"]


def check_sizes(num_samples: int, num_columns: int) -> None:
    """Refuse an empty table."""
    if num_samples < 1 or num_columns < 1:
        raise InvalidInput(f"expected at least 1 sample and 1 column; got {num_samples} and {num_columns}")


def small_normal(num_samples: int, num_columns: int, std: float, generator: torch.Generator | None) -> nn.Parameter:
    """Return a float32 table of draws from N(0, std^2)."""
    if not std >= 0:
        raise InvalidInput(f"init_std must be 0 or larger; got {std}")
    generator = generator or torch.Generator().manual_seed(0)
    return nn.Parameter(std * torch.randn(num_samples, num_columns, generator=generator))


def check_index(index: Tensor, samples: int) -> Tensor:
    """Return the samples' numbers as int64 (B,); checks shape and type, no values, so no GPU is waited for."""
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise InvalidInput(f"index must hold the samples' numbers in the training set (integers); got {index.dtype}")
    if index.shape != (samples,):
        raise InvalidInput(f"index must have shape ({samples},), one per sample of the batch; got {tuple(index.shape)}")
    return index.long()


def rows(table: Tensor, index: Tensor, sparse: bool) -> Tensor:
    """Return rows (B, columns) of a table; with `sparse` their gradient touches no other row.

    On a CPU an index out of range is an `InvalidInput`; on a GPU it is CUDA's device assertion.
    """
    if table.dtype in (torch.float16, torch.bfloat16):
        raise InvalidInput(f"per-sample variables start at about 1e-8 and must stay in float32; they are {table.dtype}")
    try:
        return F.embedding(index, table, sparse=sparse)
    except (IndexError, RuntimeError) as error:
        if "out of range" not in str(error):
            raise
        raise InvalidInput(
            f"index must lie in 0..{len(table) - 1} for {len(table)} training samples; "
            f"got values from {int(index.min())} to {int(index.max())}"
        ) from None
