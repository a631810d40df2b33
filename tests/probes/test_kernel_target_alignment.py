"""Streaming alignment against the n x n kernels written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.probes.kernel_target_alignment import KernelTargetAlignment


def dense(Z, Y, centred):
    """The definition, with both kernels in memory."""
    n = len(Z)
    centre = torch.eye(n, dtype=torch.float64) - (1 / n if centred else 0)
    K, Ky = (centre @ (M @ M.T) @ centre for M in (Z.double(), Y.double()))
    return ((K * Ky).sum() / (K.norm() * Ky.norm())).item()


def data(n=60, d=7, classes=4, seed=0):
    """Features about class means far from the origin, and labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    return 5 + torch.randn(classes, d, generator=generator)[y] + torch.randn(n, d, generator=generator), y


@pytest.mark.parametrize("size", [60, 13, 1])
def test_equals_the_dense_kernels(size):
    """A moment, the centring or a batch's weight is wrong."""
    Z, y = data()
    numbers = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    for targets, Y in ((y, F.one_hot(y, 4)), (numbers[:, 0], numbers[:, :1]), (numbers, numbers)):
        probe = KernelTargetAlignment(num_classes=4)
        for h, t in zip(Z.split(size), targets.split(size), strict=True):
            probe.update(h, t)
        values = probe.compute()
        assert values["kernel_target_alignment"] == pytest.approx(dense(Z, Y, centred=False), rel=1e-6)
        assert values["kernel_target_alignment_centred"] == pytest.approx(dense(Z, Y, centred=True), rel=1e-6)


def test_limits():
    """Features that are the targets do not align fully, or features orthogonal to them do."""
    y = torch.arange(40) % 4
    probe = KernelTargetAlignment(4)
    probe.update(3 * F.one_hot(y, 4).float(), y)
    assert list(probe.compute().values()) == pytest.approx([1.0, 1.0])
    probe = KernelTargetAlignment(4)
    probe.update((torch.arange(40) // 4 % 2 * 2.0 - 1)[:, None], y)  # +1 and -1 as often in each class
    assert probe.compute()["kernel_target_alignment_centred"] == pytest.approx(0, abs=1e-12)


def test_offset_does_not_hide_in_the_centred_alignment():
    """A large common offset of the features changes what is centred."""
    Z, y = data()
    found = []
    for offset in (0.0, 1e3):
        probe = KernelTargetAlignment(4)
        probe.update(Z.double() + offset, y)
        found.append(probe.compute())
    assert found[0]["kernel_target_alignment_centred"] == pytest.approx(
        found[1]["kernel_target_alignment_centred"], rel=1e-6
    )
    assert found[0]["kernel_target_alignment"] != pytest.approx(found[1]["kernel_target_alignment"], rel=1e-3)


@pytest.mark.parametrize("constant", ["features", "targets"])
def test_one_class_or_collapsed_features_are_undefined(constant):
    """A single class, or features all the same, give a centred alignment."""
    Z, y = data()
    probe = KernelTargetAlignment(4)
    probe.update(torch.full_like(Z, 0.1) if constant == "features" else Z, y * (constant == "features"))
    values = probe.compute()
    assert math.isfinite(values["kernel_target_alignment"])
    assert math.isnan(values["kernel_target_alignment_centred"])
    assert "the same" in probe.skipped["kernel_target_alignment_centred"]


def test_refuses_bad_batches():
    """NaN activations, a bad label, unequal lengths or no data give a number."""
    Z, y = data()
    for features, targets, message in (
        (Z.index_fill(0, torch.tensor([3]), math.nan), y, "NaN"),
        (Z, y + 1, "labels"),
        (Z[:5], y, "targets"),
        (Z[:5], y.float(), "expected features"),
        (Z, torch.full((60,), math.inf), "infinite"),
    ):
        with pytest.raises(InvalidInput, match=message):
            KernelTargetAlignment(4).update(features, targets)
    with pytest.raises(InvalidInput, match="no samples"), pytest.warns(UserWarning, match="compute"):
        KernelTargetAlignment().compute()
    with pytest.raises(InvalidInput, match="num_classes"):
        KernelTargetAlignment(1)
    with pytest.raises(InvalidInput, match="number of classes"):
        KernelTargetAlignment().update(Z, y)
