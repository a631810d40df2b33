"""Label embeddings as the clean end of a diffusion: the chain's exact coefficients, its prior term, its prototypes.

Li, Teh and Pascanu, arXiv:2503.24322, equations 1-8 and section 4. Time runs from noise to label: z_0 is noise, z_T
lies close to the embedding u of the label, and retention (the paper's alpha bar) grows with t:

    q(z_t | y) = N(sqrt(retention_t) u, (1 - retention_t) I),   snr(t) = retention_t / (1 - retention_t),
    q(z_t | z_{t-1}, y) = N(a_t u + b_t z_{t-1}, c_t I).

Shapes: retentions are scalars or broadcast with each other; u (B, d).
Cost: a handful of element-wise operations; `class_medoids` needs all distances within a class, O(n^2 d) for n samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["chain_coefficients", "class_medoids", "prior_divergence", "signal_to_noise"]


def signal_to_noise(retention: Tensor) -> Tensor:
    """Return retention / (1 - retention), the variance of the signal over that of the noise.

    Args:
        retention: Share of the signal's variance that is left, in (0, 1).

    Example:
        >>> signal_to_noise(torch.tensor([0.5, 0.75]))
        tensor([1., 3.])
    """
    return retention / (1 - retention)


def chain_coefficients(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (a, b, c) of one step from noise towards the label, z_t = a u + b z_{t-1} + sqrt(c) noise.

    It is the exact posterior q(z_t | z_{t-1}, y), so that with the true u the chain keeps the marginals of q:
    a + b sqrt(before) = sqrt(after), b^2 (1 - before) + c = 1 - after and a^2 / c = snr(after) - snr(before).

    Args:
        before: Retention at t - 1, in (0, 1).
        after: Retention at t, in (0, 1), not below `before`.

    Returns:
        Weight of the embedding, weight of z_{t-1}, variance of the fresh noise.

    Example:
        >>> a, b, c = chain_coefficients(torch.tensor(0.25), torch.tensor(0.64))
        >>> round(float(a + b * 0.5), 6), round(float(b**2 * 0.75 + c), 6)
        (0.8, 0.36)
    """
    step = before / after  # the paper's alpha_{t-1}
    a = after.sqrt() * (1 - step) / (1 - before)
    b = step.sqrt() * (1 - after) / (1 - before)
    c = (1 - after) * (1 - step) / (1 - before)
    return a, b, c


def prior_divergence(u: Tensor, retention: Tensor) -> Tensor:
    """Return KL(q(z_0 | y) || N(0, I)) per sample, (B,).

    Args:
        u: Embeddings of the labels (B, d).
        retention: Of z_0, in (0, 1).

    Example:
        >>> prior_divergence(torch.ones(1, 4), torch.tensor(1e-6)) < 1e-5
        tensor([True])
    """
    d = u.shape[1]
    return 0.5 * (retention * u.square().sum(1) - d * retention - d * torch.log1p(-retention))


def class_medoids(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Return for each class the sample with the smallest median distance to its class, (C, entries of a sample).

    The paper's prototypes: `NoProp(net, C, embed=class_medoids(x, y, C))` starts the embeddings there.

    Args:
        x: Samples (N, ...).
        y: Class labels (N,).
        num_classes: C.

    Raises:
        InvalidInput: If a class has no sample.

    Example:
        >>> class_medoids(torch.tensor([[0.0], [3], [4], [5], [20], [7]]), torch.tensor([0, 0, 0, 0, 0, 1]), 2)
        tensor([[4.],
                [7.]])
    """
    rows = []
    for k in range(num_classes):
        members = x[y == k].flatten(1)
        if not len(members):
            raise InvalidInput(f"class {k} has no sample, and a medoid needs one; give at least one per class")
        rows.append(members[torch.cdist(members, members).median(1).values.argmin()])
    return torch.stack(rows)
