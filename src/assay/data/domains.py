"""Data of several domains: training samples that know where they come from, and an unseen domain to test on.

Shapes: N samples in n training domains; domain indices int64 (N,) in 0..n-1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from assay.data.dataset import Dataset, Split
from assay.errors import InvalidInput

__all__ = ["DomainDataset", "split_by_domain"]


@dataclass(frozen=True)
class DomainDataset(Dataset):
    """A data set whose training samples belong to domains; the test split is of another one.

    Args:
        domains: The training samples' domains (N,), int64 in 0..n-1, each with a sample.
        domain_names: What the n domains are called.

    Raises:
        InvalidInput: On fewer than two training domains, indices that do not fit, or a domain without samples.
    """

    domains: Tensor
    domain_names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        n = len(self.domain_names)
        if n < 2:
            raise InvalidInput(f"{self.name}: got {n} training domain(s); domain generalisation needs at least 2")
        if self.domains.dtype != torch.int64 or self.domains.shape != (len(self.train),):
            raise InvalidInput(
                f"{self.name}: domains must be int64 ({len(self.train)},), one per training sample; "
                f"got {self.domains.dtype} {tuple(self.domains.shape)}"
            )
        if set(self.domains.unique().tolist()) != set(range(n)):
            raise InvalidInput(f"{self.name}: each of the domains 0..{n - 1} needs samples, and there are no others")

    def training_domains(self) -> list[Split]:
        """Return each training domain's samples."""
        inputs, targets = (split_by_domain(t, self.domains) for t in (self.train.inputs, self.train.targets))
        return [Split(x, y) for x, y in zip(inputs, targets, strict=True)]

    def to(self, device: torch.device | str) -> Self:
        """Return the data set on a device."""
        return replace(super().to(device), domains=self.domains.to(device))


def split_by_domain(values: Tensor, domains: Tensor) -> list[Tensor]:
    """Return the rows of each domain that a mixed batch has, in the order of their indices.

    Args:
        values: Anything with one row per sample (B, ...).
        domains: The samples' domains (B,), integers.

    Raises:
        InvalidInput: If the two differ in length.

    Example:
        >>> [part.tolist() for part in split_by_domain(torch.arange(4), torch.tensor([1, 0, 1, 1]))]
        [[1], [0, 2, 3]]
    """
    if domains.shape != values.shape[:1]:
        raise InvalidInput(f"domains must have shape ({len(values)},), one per row; got {tuple(domains.shape)}")
    return [values[domains == e] for e in domains.unique()]
