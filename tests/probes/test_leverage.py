"""Sharpness without a group, against the dense Hessian of what is left."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.leverage import sharpness_without


def setting():
    """A small network in float64, its data, and a matrix over some of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    x[:4] *= 6
    y = torch.arange(20) % 2
    return model, x, y, lambda chosen: CurvatureMatrix(model, F.cross_entropy, [(x[chosen], y[chosen])])


def test_equals_the_dense_hessian_over_the_rest():
    """Weights of the two means, or the direction of the difference, are wrong."""
    model, x, y, matrix = setting()
    everything = matrix(slice(None))
    shapes = {name: p.detach() for name, p in model.named_parameters()}

    def loss(flat):
        parts = flat.split([p.numel() for p in shapes.values()])
        weights = {name: part.view_as(p) for (name, p), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[4:],)), y[4:])

    dense = torch.func.hessian(loss)(torch.cat([p.flatten() for p in shapes.values()]))
    values = torch.linalg.eigvalsh(dense)
    largest = values[values.abs().argmax()].item()
    assert sharpness_without(everything, matrix(slice(0, 4))) == pytest.approx(largest, rel=1e-4)


def test_bad_groups_are_refused():
    """Nothing is left, or matrices of two networks are subtracted."""
    _, x, y, matrix = setting()
    everything = matrix(slice(None))
    with pytest.raises(InvalidInput, match="nothing would be left"):
        sharpness_without(everything, matrix(slice(None)))
    other = CurvatureMatrix(nn.Linear(3, 2).double(), F.cross_entropy, [(x[:3], y[:3])])
    with pytest.raises(InvalidInput, match="do not fit"):
        sharpness_without(everything, other)
