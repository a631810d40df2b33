"""MNIST with shifts between domains: colours that follow the label, and rotations.

Arjovsky, Bottou, Gulrajani, Lopez-Paz (arXiv:1907.02893), Coloured MNIST: y says whether the digit is below 5, flipped
with probability 0.25; the colour is y, flipped with probability e, which differs between domains; the image is in one
of two channels by its colour. So colour predicts y better than shape does in training (e = 0.2 and 0.1), and fails in
the test (e = 0.9). Ghifary, Kleijn, Zhang, Balduzzi (arXiv:1508.07680), Rotated MNIST: a domain is an angle.

Shapes: coloured images (N, 2, 14, 14), every second row and column; rotated ones (N, 1, 28, 28). Values from 0 to 1,
not standardised, as in the authors' code; labels (N,).

Departures: domains have no images in common and are drawn with all classes in proportion. Validation of Coloured MNIST
has colours that say nothing (e = 0.5), which training domains alone would not give: who selects on it must say so.
Rotation is bilinear about the centre, counter-clockwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.data.dataset import Split, stratified_split
from assay.data.domains import DomainDataset
from assay.data.images import _mnist_arrays
from assay.errors import InvalidInput

__all__ = ["colored_mnist", "rotated_mnist", "without_color"]


def colored_mnist(
    *,
    flips: Sequence[float] = (0.2, 0.1),
    validation_flip: float = 0.5,
    test_flip: float = 0.9,
    label_noise: float = 0.25,
    train: int = 7000,
    validation: int = 1000,
    test: int = 2000,
    generator: torch.Generator | None = None,
) -> DomainDataset:
    """Digits below 5 or not, with a colour that predicts the noisy label and turns around in the test domain.

    Args:
        flips: How often the colour is not the label, one probability per training domain.
        validation_flip: The same for the validation split.
        test_flip: The same for the test split.
        label_noise: Probability that a label is flipped, in all splits, before the colour is drawn; below 1.
        train: Images for training, shared among the domains.
        validation: Images for validation.
        test: Images for testing.
        generator: Draws split, flips and colours; None is a fixed draw.

    Returns:
        Inputs (N, 2, 14, 14), labels (N,) in {0, 1}. With the official test files only, all splits come from them, as
        with `mnist`.

    Raises:
        InvalidInput: On fewer than two domains, a probability out of range, or more images than there are.
        MissingData: If the files are nowhere and cannot be downloaded.
    """
    if not all(0 <= e <= 1 for e in (*flips, validation_flip, test_flip)) or not 0 <= label_noise < 1:
        raise InvalidInput(
            "flips must lie in 0..1 and label_noise in 0..1, below 1; "
            f"got {tuple(flips)}, {validation_flip}, {test_flip} and {label_noise}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    parts = _draw((*_shares(train, len(flips)), validation), test, generator)
    coloured = [
        _colour(images, digits, e, label_noise, generator)
        for (images, digits), e in zip(parts, (*flips, validation_flip, test_flip), strict=True)
    ]
    return _assembled("colored mnist", coloured, [f"e={e:g}" for e in flips], num_classes=2)


def rotated_mnist(
    *,
    angles: Sequence[float] = (0.0, 15.0, 30.0, 45.0, 60.0),
    test_angle: float = 75.0,
    train: int = 7000,
    validation: int = 1000,
    test: int = 2000,
    generator: torch.Generator | None = None,
) -> DomainDataset:
    """Digits, one angle per training domain and an unseen angle in the test.

    Args:
        angles: Degrees counter-clockwise, one per training domain.
        test_angle: Degrees of the test split.
        train: Images for training, shared among the domains.
        validation: Images for validation, shared among the same angles.
        test: Images for testing.
        generator: Draws the split; None is a fixed draw.

    Returns:
        Inputs (N, 1, 28, 28), labels (N,) in 0..9. With the official test files only, all splits come from them, as
        with `mnist`.

    Raises:
        InvalidInput: On fewer than two domains, an angle that is not finite, or more images than there are.
        MissingData: If the files are nowhere and cannot be downloaded.
    """
    if not all(math.isfinite(angle) for angle in (*angles, test_angle)):
        raise InvalidInput(f"angles must be finite numbers of degrees; got {tuple(angles)} and {test_angle}")
    generator = generator or torch.Generator().manual_seed(0)
    parts = _draw((*_shares(train, len(angles)), *_shares(validation, len(angles))), test, generator)
    turned = [
        (_rotate(images[:, None].float() / 255, angle), digits)
        for (images, digits), angle in zip(parts, (*angles, *angles, test_angle), strict=True)
    ]
    n = len(angles)
    validation_part = tuple(torch.cat(tensors) for tensors in zip(*turned[n:-1], strict=True))
    kept = [*turned[:n], validation_part, turned[-1]]
    return _assembled("rotated mnist", kept, [f"{angle:g} degrees" for angle in angles], num_classes=10)  # type: ignore[arg-type]


def without_color(images: Tensor) -> Tensor:
    """Return coloured images (N, 2, H, W) in both channels alike, so that only shape is left.

    Example:
        >>> without_color(torch.tensor([[[[0.0]], [[0.5]]]])).flatten().tolist()
        [0.5, 0.5]
    """
    return images.sum(dim=1, keepdim=True).expand_as(images).contiguous()


def _shares(total: int, domains: int) -> list[int]:
    """Share samples equally, the first domains getting one more where there is a rest."""
    if domains < 2:
        raise InvalidInput(f"got {domains} training domain(s); domain generalisation needs at least 2")
    return [total // domains + (e < total % domains) for e in range(domains)]


def _draw(sizes: Sequence[int], test: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Return (images, digits) of disjoint draws of these sizes and then of the test."""
    images, digits, test_images, test_digits = _mnist_arrays()
    if digits is test_digits:
        chosen = [(images[i, 0], digits[i]) for i in stratified_split(digits, [*sizes, test], generator)]
    else:
        chosen = [(images[i, 0], digits[i]) for i in stratified_split(digits, sizes, generator)]
        (i,) = stratified_split(test_digits, [test], generator)
        chosen.append((test_images[i, 0], test_digits[i]))
    return [(x, y.long()) for x, y in chosen]


def _colour(
    images: Tensor, digits: Tensor, flip: float, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    labels = (digits < 5).long() ^ (torch.rand(len(digits), generator=generator) < noise).long()
    colours = labels ^ (torch.rand(len(digits), generator=generator) < flip).long()
    small = images[:, ::2, ::2].float() / 255
    return small[:, None] * F.one_hot(colours, 2)[:, :, None, None], labels


def _rotate(images: Tensor, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where each output pixel comes from, with y downwards.
    matrix = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _assembled(
    name: str, parts: Sequence[tuple[Tensor, Tensor]], names: Sequence[str], num_classes: int
) -> DomainDataset:
    """Join the training domains; the last two parts are validation and test."""
    *training, validation, test = parts
    domains = torch.cat([torch.full((len(y),), e) for e, (_, y) in enumerate(training)])
    train = Split(*(torch.cat(tensors) for tensors in zip(*training, strict=True)))
    return DomainDataset(name, train, Split(*validation), Split(*test), num_classes, domains, tuple(names))
