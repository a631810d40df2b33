"""XOR clusters: four Gaussian clouds at +-mu_0 and +-mu_1, opposite ones of one class, with flipped training labels.

Xu, Wang, Frei, Vardi, Hu (2024, arXiv:2310.02541), section on the data: a sample is x = c + N(0, I_p) with c uniform on
{+mu_0, -mu_0, +mu_1, -mu_1}, mu_0 and mu_1 orthogonal and equally long; its clean class is the index of mu. No linear
classifier is better than chance.

Shapes: n training samples, p features; inputs float32 (N, p), targets int64 (N,) in {0, 1}.

Departures: classes are 0 and 1, the paper's labels are -1 and +1. Labels are flipped in the training split only:
validation and test are scored on clean labels, as the paper scores. Inputs are not standardised.
Cost: 4 p bytes per sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from assay.data.dataset import Dataset, Split
from assay.errors import InvalidInput

__all__ = ["XorClusters", "xor_clusters"]


@dataclass(frozen=True)
class XorClusters(Dataset):
    """A data set that knows how it was made.

    Args:
        clean: The training samples' classes (n,) before labels were flipped.
        centers: mu_0 and mu_1 (2, p); class k has its clusters at plus and minus row k.
    """

    clean: Tensor
    centers: Tensor

    def to(self, device: torch.device | str) -> Self:
        """Return the data set on a device."""
        return replace(super().to(device), clean=self.clean.to(device), centers=self.centers.to(device))


def xor_clusters(
    *,
    features: int = 1000,
    mu: float = 8.0,
    flip: float = 0.1,
    balanced: bool = False,
    train: int = 100,
    validation: int = 100,
    test: int = 1000,
    generator: torch.Generator | None = None,
) -> XorClusters:
    """Draw XOR clusters in random orthogonal directions.

    Args:
        features: p, at least 2.
        mu: Distance of the clusters from the origin, in standard deviations of one feature; at 0 there is no signal.
        flip: Probability that a training label is flipped, 0 to 1.
        balanced: Whether each split has its clusters in equal numbers (to within one) instead of drawn at random.
        train: Samples for training, n.
        validation: Samples for validation.
        test: Samples for testing.
        generator: Draws directions, clusters, noise and flips; None is a fixed draw.

    Raises:
        InvalidInput: If a number is out of its range.

    Example:
        >>> data = xor_clusters(features=50, train=20)
        >>> data.train.inputs.shape, data.centers.shape, data.outputs
        (torch.Size([20, 50]), torch.Size([2, 50]), 2)
    """
    if features < 2 or not mu >= 0 or not 0 <= flip <= 1:
        raise InvalidInput(f"expected features >= 2, mu >= 0 and 0 <= flip <= 1; got {features}, {mu} and {flip}")
    if min(train, validation, test) < 1:
        raise InvalidInput(f"every split needs at least 1 sample, got sizes {(train, validation, test)}")
    generator = generator or torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(features, 2, generator=generator)).Q
    centers = mu * directions.T.contiguous()
    parts = {
        name: _draw(centers, size, balanced, generator)
        for name, size in (("train", train), ("validation", validation), ("test", test))
    }
    clean = parts["train"].targets
    flipped = torch.rand(train, generator=generator) < flip
    parts["train"] = Split(parts["train"].inputs, torch.where(flipped, 1 - clean, clean))
    return XorClusters("xor clusters", **parts, num_classes=2, clean=clean, centers=centers)


def _draw(centers: Tensor, size: int, balanced: bool, generator: torch.Generator) -> Split:
    """Return samples and their clean classes; cluster c belongs to class c % 2 and lies on side c // 2."""
    cluster = torch.randint(4, (size,), generator=generator)
    if balanced:
        cluster = (torch.arange(size) % 4)[torch.randperm(size, generator=generator)]
    labels, side = cluster % 2, 1.0 - 2.0 * (cluster // 2)
    inputs = torch.randn(size, centers.shape[1], generator=generator)
    return Split(inputs.addcmul_(side[:, None], centers[labels]), labels)
