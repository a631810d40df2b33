"""Alignment of neurons with the axes of the classes that they vote for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.cluster_axes import ClusterAlignment, cluster_alignment
from assay.watch import Watch


def _random(K: int = 3, m: int = 12, p: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(K)
    weight, top, axes = (torch.randn(shape, generator=generator) for shape in ((m, p), (K, m), (K, p)))
    return weight, top, axes


@pytest.mark.parametrize("K", [2, 3])
def test_it_is_the_definition_neuron_by_neuron(K: int) -> None:
    """A neuron would be held against an axis that is not its own."""
    weight, top, axes = _random(K)
    aligned, cosines = 0, []
    for j in range(12):
        votes = max(range(K), key=lambda k: float(top[k, j]))
        cosine = [abs(float(torch.cosine_similarity(weight[j], axes[k], dim=0))) for k in range(K)]
        aligned += all(cosine[votes] > cosine[k] for k in range(K) if k != votes)
        cosines.append(cosine[votes])
    found = cluster_alignment(weight, top, axes)
    assert found["aligned_share"] == pytest.approx(aligned / 12)
    assert found["aligned_cosine"] == pytest.approx(sum(cosines) / 12, abs=1e-6)


def test_lengths_rotations_and_signs_of_neurons_do_not_matter() -> None:
    """A longer neuron, a flipped one or another basis would change what is a matter of angles."""
    weight, top, axes = _random()
    base = cluster_alignment(weight, top, axes)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(9))).Q
    factors = torch.linspace(-2, 3, 12)[:, None]
    for other in (
        cluster_alignment(weight @ rotation, top, 7 * axes @ rotation),
        cluster_alignment(factors * weight, top, axes),
    ):
        assert other["aligned_share"] == base["aligned_share"]
        assert other["aligned_cosine"] == pytest.approx(base["aligned_cosine"], abs=1e-6)


def test_extremes() -> None:
    """Neurons on their own axes would not be fully aligned, or those on the other's would not be fully misaligned."""
    axes, top = 5 * torch.eye(2, 4), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert cluster_alignment(axes, top, axes) == {"aligned_share": 1.0, "aligned_cosine": 1.0}
    assert cluster_alignment(axes.flip(0), top, axes) == {"aligned_share": 0.0, "aligned_cosine": 0.0}
    assert cluster_alignment(torch.zeros(2, 4), top, axes) == {"aligned_share": 0.0, "aligned_cosine": 0.0}


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


DATA = (torch.ones(3, 4), torch.tensor([0, 1, 0]))


def test_the_probe_reads_the_layer_beneath_the_head() -> None:
    """Another layer than the one that the head reads would be measured."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), *_net())
    for probe in (ClusterAlignment(torch.eye(2, 4)), ClusterAlignment(torch.eye(2, 4), layer="2")):
        found = Watch(model, [probe], DATA).measure(0)
        assert found == cluster_alignment(model[2].weight, model[4].weight, torch.eye(2, 4))


def test_a_network_without_such_a_layer_has_no_alignment() -> None:
    """A network on which the measure is not defined would end a run that watches other things too."""
    watch = Watch(nn.Linear(4, 2), [ClusterAlignment(torch.eye(2, 4))], DATA)
    assert all(math.isnan(value) for value in watch.measure(0).values())
    assert "no nn.Linear gives the neurons" in watch.skipped["aligned_share"]


def test_a_missing_layer_and_axes_of_another_space_are_refused() -> None:
    """A wrong name would fall back to some layer silently."""
    for name in ("hidden", "2"):
        with pytest.raises(InvalidInput, match=f"hidden layer '{name}' with 6 outputs.*it has 0"):
            Watch(_net(), [ClusterAlignment(torch.eye(2, 4), layer=name)], DATA).measure(0)
    with pytest.raises(InvalidInput, match="none besides the head"):
        Watch(nn.Linear(4, 2), [ClusterAlignment(torch.eye(2, 4), layer="0")], DATA).measure(0)
    for axes in (torch.eye(2, 5), torch.eye(3, 4), torch.zeros(2, 4)):
        with pytest.raises(InvalidInput, match=r"do not fit|length 0"):
            Watch(_net(), [ClusterAlignment(axes)], DATA).measure(0)


def test_weights_that_are_not_finite_are_said() -> None:
    """A NaN weight would count as not aligned."""
    model = _net()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    watch = Watch(model, [ClusterAlignment(torch.eye(2, 4))], DATA)
    values = watch.measure(0)
    assert all(map(math.isnan, values.values()))
    assert watch.skipped["aligned_share"] == "a weight of the layer or of the head is NaN or infinite"
