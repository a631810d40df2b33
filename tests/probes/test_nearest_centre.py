import pytest
import torch

from assay.errors import InvalidInput
from assay.probes.nearest_centre import NearestCentreDisagreement, nearest


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_brute_force(offset):
    """A sample's nearest centre is wrong, for example far from the origin."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 4, generator=generator, dtype=torch.float64) + offset
    features = torch.randn(200, 4, generator=generator, dtype=torch.float64) + offset
    scores = torch.randn(200, 6, generator=generator)
    probe = NearestCentreDisagreement(centres)
    for h, z in zip(features.split(33), scores.split(33), strict=True):
        probe.update(h, z)
    expected = sum(
        min(range(6), key=lambda k: float((h - centres[k]).norm())) != int(z.argmax())
        for h, z in zip(features, scores, strict=True)
    )
    assert probe.compute() == {"nc4": expected / 200}


def test_nearest_of_the_centres_themselves():
    """A centre is not its own nearest centre."""
    M = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert nearest(M, M - 0).tolist() == list(range(5))


def test_shapes_must_fit():
    """Scores or features of another layer are compared all the same."""
    probe = NearestCentreDisagreement(torch.eye(3))
    with pytest.raises(InvalidInput, match="do not fit"):
        probe.update(torch.ones(2, 4), torch.ones(2, 3))
    with pytest.raises(InvalidInput, match="do not fit"):
        probe.update(torch.ones(2, 3), torch.ones(2, 4))


def test_accuracy_of_the_nearest_centre():
    """The nearest-class-centre classifier's accuracy counts the network's decisions, or targets out of range pass."""
    probe = NearestCentreDisagreement(torch.tensor([[0.0], [1.0]]))
    features = torch.tensor([[0.1], [0.2], [0.9], [0.8]])
    probe.update(features, torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([0, 1, 1, 1]))
    assert probe.compute() == {"nc4": 0.5, "ncc_accuracy": 0.75}
    with pytest.raises(InvalidInput, match=r"labels must lie in 0\.\.1"):
        probe.update(features, torch.ones(4, 2), torch.tensor([0, 1, 2, 1]))
