"""How far two sets of images are apart, in the features of a small classifier, and how often one copies the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data.batching import batches
from assay.data.dataset import Split
from assay.models.mlp import MLP

__all__ = ["copy_rate", "feature_classifier", "frechet_distance"]

FEATURES = 32


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of the normal distributions with the means and covariances of two sets of features.

    Args:
        a: (n, d).
        b: (m, d).

    Returns:
        |mean a - mean b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).
    """
    a, b = a.double(), b.double()
    A, B = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(A)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * overlap).item()


def copy_rate(samples: Tensor, train: Tensor, test: Tensor, quantile: float = 0.01) -> float:
    """Return the share of samples that are nearer to a training image than nearly all test images are.

    Args:
        samples: (n, d).
        train: (m, d).
        test: (k, d), whose `quantile` of distances is what counts as near.
        quantile: What the rate is, on average, where samples copy no more than test images do.
    """
    near = torch.cdist(test, train).amin(dim=1).quantile(quantile)
    return float((torch.cdist(samples, train).amin(dim=1) < near).float().mean())


def feature_classifier(train: Split, epochs: int, generator: torch.Generator) -> tuple[nn.Module, nn.Module]:
    """Train a classifier of images on labels, by Adam at 1e-3 in batches of 128.

    Args:
        train: Images in [0, 1] and labels of 10 classes.
        epochs: Passes over them.
        generator: Draws weights and order.

    Returns:
        The map to 32 features before the head, and the whole classifier.
    """
    model = MLP(tuple(train.inputs.shape[1:]), 10, width=[128, FEATURES], generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in batches(train, 128, generator):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval().requires_grad_(False)
    return model[:-1], model
