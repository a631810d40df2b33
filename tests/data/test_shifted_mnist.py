"""Coloured and rotated MNIST: rates of flips, what the images are, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.data import shifted_mnist
from assay.data.shifted_mnist import colored_mnist, rotated_mnist, without_color
from assay.errors import InvalidInput


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """4,000 images of noise in place of MNIST, each with its own digit and all pixels above 0."""
    images = torch.randint(1, 256, (4000, 1, 28, 28), generator=_seeded(0)).to(torch.uint8)
    digits = torch.arange(4000) % 10
    monkeypatch.setattr(shifted_mnist, "_mnist_arrays", lambda: (images, digits, images, digits))
    return images


def _colours(inputs: Tensor) -> Tensor:
    present = inputs.flatten(2).sum(2) > 0
    assert (present.sum(1) == 1).all(), "an image must be in one channel"
    return present.long().argmax(1)


def _digits(inputs: Tensor, images: Tensor) -> Tensor:
    """Find each input's image, and so its digit, by its pixels."""
    known = {row.numpy().tobytes(): i % 10 for i, row in enumerate(images[:, 0, ::2, ::2].flatten(1))}
    shown = (inputs.sum(1) * 255).round().to(torch.uint8).flatten(1)
    return torch.tensor([known[row.numpy().tobytes()] for row in shown])


def test_labels_and_colours_are_flipped_at_the_given_rates(images: Tensor) -> None:
    """A domain would have another correlation of colour and label, or the test would not turn it around."""
    data = colored_mnist(train=2400, validation=800, test=800, generator=_seeded(1))
    parts = [*data.training_domains(), data.validation, data.test]
    for split, flip in zip(parts, (0.2, 0.1, 0.5, 0.9), strict=True):
        clean = (_digits(split.inputs, images) < 5).long()
        assert (split.targets != clean).double().mean().item() == pytest.approx(0.25, abs=0.06)
        assert (_colours(split.inputs) != split.targets).double().mean().item() == pytest.approx(flip, abs=0.07)
    assert data.outputs == 2 and data.input_shape == (2, 14, 14) and data.domain_names == ("e=0.2", "e=0.1")


def test_images_are_every_second_pixel_and_of_one_split_only(images: Tensor) -> None:
    """Images would be blurred or rescaled, or one would be in training and test."""
    data = colored_mnist(train=2400, validation=800, test=800, generator=_seeded(2))
    splits = [data.train, data.validation, data.test]
    seen = torch.cat([(split.inputs.sum(1) * 255).round().flatten(1) for split in splits])
    assert len(seen.unique(dim=0)) == 4000
    assert torch.equal(seen.sum(0), images[:, 0, ::2, ::2].float().flatten(1).sum(0))


def test_without_color_shape_alone_is_left(images: Tensor) -> None:
    """The grey reference would still see a colour, or lose the image."""
    inputs = colored_mnist(train=20, validation=10, test=10).train.inputs
    grey = without_color(inputs)
    assert grey.shape == inputs.shape and torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], inputs.amax(1))


def test_draws_are_the_generators(images: Tensor) -> None:
    """Flips would come from the global generator, or be the same for every seed."""
    before = torch.get_rng_state()
    draws = [colored_mnist(train=50, validation=10, test=10, generator=_seeded(s)).train for s in (0, 0, 1)]
    assert torch.equal(draws[0].inputs, draws[1].inputs) and torch.equal(draws[0].targets, draws[1].targets)
    assert not torch.equal(draws[0].inputs, draws[2].inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_right_angles_are_exact_rotations(images: Tensor) -> None:
    """A rotation would turn the other way, about another point, or mix domains up."""
    data = rotated_mnist(angles=(0, 90, 180), test_angle=270, train=30, validation=9, test=10, generator=_seeded(3))
    known = images[:, 0].float() / 255
    for split, turns in zip([*data.training_domains(), data.test], range(4), strict=True):
        turned = torch.rot90(known, turns, (1, 2))
        distance = torch.cdist(split.inputs.flatten(1), turned.flatten(1)).min(1)
        assert distance.values.max().item() < 0.1  # other images are at about 10
        assert torch.equal(distance.indices % 10, split.targets)
    assert len(data.validation) == 9 and data.domain_names == ("0 degrees", "90 degrees", "180 degrees")


def test_small_angles_turn_counter_clockwise(images: Tensor) -> None:
    """An angle would be its negative: a dot to the right of the centre moves up."""
    dot = torch.zeros(1, 1, 28, 28)
    dot[0, 0, 13:15, 22:24] = 1.0
    turned = shifted_mnist._rotate(dot, 30.0)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    y, x = ((turned * axis).sum() / turned.sum() - 13.5 for axis in (rows, columns))
    assert torch.atan2(-y, x).rad2deg().item() == pytest.approx(30, abs=1)


def test_real_files_give_both(real_data: object) -> None:
    """The publishers' files would not load, or the digits' labels be lost on the way."""
    coloured = colored_mnist(train=200, validation=100, test=100)
    assert coloured.train.inputs.max() <= 1 and coloured.train.inputs.min() >= 0
    rotated = rotated_mnist(train=200, validation=100, test=100)
    assert rotated.outputs == 10 and len(rotated.training_domains()) == 5


def test_bad_input_is_one_clear_error(images: Tensor) -> None:
    """One domain only, or rates that are no probabilities, would give data that mean nothing."""
    wrong = [
        (colored_mnist, {"flips": (0.2,)}, "1 training domain"),
        (rotated_mnist, {"angles": (0.0,)}, "1 training domain"),
        (colored_mnist, {"flips": (0.2, 1.2)}, "flips must"),
        (colored_mnist, {"label_noise": 1.0}, "label_noise"),
        (colored_mnist, {"train": 5000}, "only 4000"),
        (rotated_mnist, {"angles": (0.0, float("nan"))}, "angles must be finite"),
    ]
    for load, options, message in wrong:
        with pytest.raises(InvalidInput, match=message):
            load(**options)  # type: ignore[operator]
