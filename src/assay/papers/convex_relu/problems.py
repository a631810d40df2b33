"""The problems of the study of convex-relu: a tiny teacher, two real pairs of classes, and a curved boundary to attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.data.images import mnist
from assay.data.tabular import breast_cancer
from assay.streams import Streams

__all__ = ["Problem", "load_problem"]


@dataclass(frozen=True)
class Problem:
    """Training and test data in float64, (n, d) with a column of ones last, and targets (n,)."""

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor


def load_problem(streams: Streams, name: str, samples: int) -> Problem:
    """Return a problem by name: "exact", "mnist", "breast-cancer" or "toy"; "data" decides its draws.

    Args:
        streams: Of the trial.
        name: The problem.
        samples: Training samples.
    """
    generator = streams.torch("data")
    return {"exact": _teacher, "mnist": _three_or_eight, "breast-cancer": _tumours, "toy": _boundary}[name](
        samples, generator
    )


def _teacher(samples: int, generator: torch.Generator) -> Problem:
    """Return Gaussian points in the plane, valued by three ReLUs plus noise."""
    points = torch.randn(2 * samples, 2, dtype=torch.float64, generator=generator)
    X = _with_ones(points)
    hidden = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    head = torch.randn(3, dtype=torch.float64, generator=generator)
    noise = 0.1 * torch.randn(2 * samples, dtype=torch.float64, generator=generator)
    y = (X @ hidden.T).relu() @ head + noise
    return Problem(X[:samples], y[:samples], X[samples:], y[samples:])


def _three_or_eight(samples: int, generator: torch.Generator) -> Problem:
    """Return MNIST's 3 against 8 in 20 principal components of the training images."""
    data = mnist(train=7 * samples, validation=100, test=3000, pool=2, generator=generator)
    parts = []
    for split in (data.train, data.test):
        chosen = (split.targets == 3) | (split.targets == 8)
        labels = torch.where(split.targets[chosen] == 3, 1.0, -1.0).double()
        parts.append((split.inputs[chosen].double().flatten(1), labels))
    (X, y), (X_test, y_test) = parts
    X, y = X[:samples], y[:samples]
    mean = X.mean(dim=0)
    basis = torch.linalg.svd(X - mean, full_matrices=False)[2][:20].T
    return _scaled((X - mean) @ basis, y, (X_test - mean) @ basis, y_test)


def _tumours(samples: int, generator: torch.Generator) -> Problem:
    """Return breast cancer's 30 standardised features."""
    data = breast_cancer(train=samples, validation=10, test=559 - samples, generator=generator)
    y, y_test = (2.0 * split.targets.double() - 1 for split in (data.train, data.test))
    return _scaled(data.train.inputs.double(), y, data.test.inputs.double(), y_test)


def _boundary(samples: int, generator: torch.Generator) -> Problem:
    """Return points of the square above and below a wave, none close to it."""
    points = 2 * torch.rand(40 * samples, 2, dtype=torch.float64, generator=generator) - 1
    height = points[:, 1] - 0.5 * (math.pi * points[:, 0]).sin()
    clear = height.abs() > 0.1
    X, y = _with_ones(points[clear]), height[clear].sign()
    return Problem(X[:samples], y[:samples], X[samples : samples + 500], y[samples : samples + 500])


def _scaled(X: Tensor, y: Tensor, X_test: Tensor, y_test: Tensor) -> Problem:
    """Divide by one number, so that a feature's mean square is 1 over the training data, and append ones."""
    scale = X.square().mean().sqrt()
    return Problem(_with_ones(X / scale), y, _with_ones(X_test / scale), y_test)


def _with_ones(X: Tensor) -> Tensor:
    return torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], dim=1)
