"""Moments of the targets and what they depend on."""

import pytest
import torch

from assay.data.single_index_model import SingleIndexTeacher, single_index
from assay.errors import InvalidInput
from assay.names import resolve


def test_targets_depend_on_the_direction_only():
    """A target changes with a move of the input across the hidden direction, or not along it."""
    teacher = SingleIndexTeacher(30, noise=0.0, generator=torch.Generator().manual_seed(3))
    x, y = teacher.sample(50, torch.Generator().manual_seed(4))
    beta = teacher.direction
    assert beta.norm().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(y[:, 0], torch.log1p(torch.exp(x @ beta)), atol=1e-5)


def test_moments_are_the_papers():
    """The second moment of softplus' targets is not 1.012, or the noise has another deviation than 0.3."""
    x, y = SingleIndexTeacher(8).sample(200_000, torch.Generator().manual_seed(0))
    _, clean = SingleIndexTeacher(8, noise=0.0).sample(200_000, torch.Generator().manual_seed(0))
    assert y.square().mean().item() == pytest.approx(1.012, abs=0.01)
    assert (y - clean).std().item() == pytest.approx(0.3, abs=0.003)
    assert x.mean().item() == pytest.approx(0, abs=0.003) and x.std().item() == pytest.approx(1, abs=0.003)


def test_splits_share_one_teacher_and_no_sample():
    """A split has its own direction, or samples come twice."""
    data = resolve("data", "single-index(d=6, link='linear', noise=0.0, train=40, validation=30, test=20)")()
    assert data.input_shape == (6,) and data.outputs == 1 and data.num_classes is None
    beta = torch.linalg.lstsq(data.train.inputs, data.train.targets).solution
    for split in (data.validation, data.test):
        assert torch.allclose(split.inputs @ beta, split.targets, atol=1e-4)
    inputs = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    assert len(inputs.unique(dim=0)) == 90
    other = single_index(d=6, generator=torch.Generator().manual_seed(9))
    assert not torch.equal(other.train.inputs[:5], single_index(d=6).train.inputs[:5])


@pytest.mark.parametrize("bad", [{"d": 0}, {"noise": -1.0}, {"link": "cube"}, {"train": 0}])
def test_refuses_bad_arguments(bad):
    """An impossible setting gives data."""
    with pytest.raises(InvalidInput):
        single_index(**bad)
