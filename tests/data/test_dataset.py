"""Splits: checks of what goes in, and draws that are disjoint, stratified and reproducible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.dataset import Dataset, Split, split_dataset, stratified_split
from assay.errors import InvalidInput


def _split(labels: list[int], features: int = 2) -> Split:
    return Split(torch.zeros(len(labels), features), torch.tensor(labels))


@st.composite
def _labels_and_sizes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    first = draw(st.integers(1, len(labels)))
    second = draw(st.integers(0, len(labels) - first))
    return labels, [first, second] if second else [first]


@given(_labels_and_sizes(), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_split_is_disjoint_and_of_the_right_size(drawn: tuple[list[int], list[int]], seed: int) -> None:
    """A sample in two splits would leak test data into training."""
    labels, sizes = drawn
    sets = stratified_split(torch.tensor(labels), sizes, torch.Generator().manual_seed(seed))
    together = torch.cat(sets).tolist()
    assert [len(chosen) for chosen in sets] == sizes
    assert len(set(together)) == len(together) == sum(sizes)


@given(_labels_and_sizes(), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_first_split_has_every_class_within_one_of_its_share(drawn: tuple[list[int], list[int]], seed: int) -> None:
    """A class could be missing from a split, or crowd it."""
    labels, sizes = drawn
    chosen = stratified_split(torch.tensor(labels), sizes, torch.Generator().manual_seed(seed))[0]
    for label in set(labels):
        share = sizes[0] * labels.count(label) / len(labels)
        assert abs(int((torch.tensor(labels)[chosen] == label).sum()) - share) < 1


def test_divisible_sizes_give_exact_counts_in_every_split() -> None:
    """Balanced classes would come out unbalanced."""
    labels = torch.arange(5).repeat(20)
    for chosen in stratified_split(labels, [50, 30, 20]):
        assert torch.bincount(labels[chosen]).tolist() == [len(chosen) // 5] * 5


def test_draw_depends_on_the_generator_only() -> None:
    """The split would move with the global seed, so arms would not be paired."""
    labels = torch.arange(4).repeat(25)
    before = torch.get_rng_state()
    first = stratified_split(labels, [40, 20], torch.Generator().manual_seed(1))
    again = stratified_split(labels, [40, 20], torch.Generator().manual_seed(1))
    other = stratified_split(labels, [40, 20], torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(before, torch.get_rng_state())


def test_labels_are_in_random_order() -> None:
    """Without shuffling, an unshuffled first mini-batch would hold one class."""
    labels = torch.arange(10).repeat_interleave(100)
    chosen = stratified_split(labels, [500])[0]
    assert len(labels[chosen][:50].unique()) > 5


@pytest.mark.parametrize("sizes", [[0, 3], [-1], [7, 4]])
def test_impossible_sizes_are_refused(sizes: list[int]) -> None:
    """Too large or empty splits would come out silently shorter."""
    with pytest.raises(InvalidInput, match=r"sample"):
        stratified_split(torch.arange(2).repeat(5), sizes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["inputs", "targets"])
def test_nan_and_infinity_are_refused(value: float, where: str) -> None:
    """One NaN in the data would make every weight NaN after a step."""
    tensors = {"inputs": torch.zeros(3, 2), "targets": torch.zeros(3, 1)}
    tensors[where][1] = value
    with pytest.raises(InvalidInput, match=rf"{where} contain \d NaN or infinite"):
        Split(**tensors)


def test_empty_and_unequal_splits_are_refused() -> None:
    """A mean over no samples is NaN; unpaired targets are a bug upstream."""
    with pytest.raises(InvalidInput, match="empty"):
        Split(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    with pytest.raises(InvalidInput, match="3 inputs but 2 targets"):
        Split(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("labels", [[0, 1, 3], [-1, 0, 1]])
def test_labels_out_of_range_are_refused(labels: list[int]) -> None:
    """Cross-entropy would fail with an index error far from its cause."""
    good = _split([0, 1, 2])
    with pytest.raises(InvalidInput, match="expected 0 to 2"):
        Dataset("mine", good, _split(labels), good, 3)


def test_labels_of_the_wrong_type_and_samples_of_another_shape_are_refused() -> None:
    """Float labels would be taken for a regression; another shape would fail inside the model."""
    good = _split([0, 1])
    with pytest.raises(InvalidInput, match="int64"):
        Dataset("mine", Split(torch.zeros(2, 2), torch.zeros(2)), good, good, 2)
    with pytest.raises(InvalidInput, match=r"test have shape \(5,\)"):
        Dataset("mine", good, good, _split([0, 1], features=5), 2)


def test_shape_and_outputs() -> None:
    """Models would be built with the wrong first and last layer."""
    images = Split(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    assert Dataset("images", images, images, images, 10).input_shape == (3, 8, 8)
    assert Dataset("images", images, images, images, 10).outputs == 10
    regression = Split(torch.zeros(2, 4), torch.zeros(2, 3))
    assert Dataset("regression", regression, regression, regression, None).outputs == 3


def test_standardisation_uses_training_statistics_only() -> None:
    """Statistics of validation or test data would leak into the inputs."""
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) * 5 + 3
    inputs[:, 2] = 7.0
    dataset = split_dataset("mine", inputs.clone(), torch.arange(60) % 3, (30, 15, 15), num_classes=3)
    train = dataset.train.inputs
    varying = [0, 1, 3]
    torch.testing.assert_close(train.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(train[:, varying].std(0, correction=0), torch.ones(3))
    assert train[:, 2].abs().max() == 0, "a constant feature becomes zero, not NaN"
    assert dataset.test.inputs[:, varying].mean(0).abs().min() > 1e-3


def test_images_are_standardised_per_channel() -> None:
    """Per-pixel statistics would blow up borders that are nearly constant."""
    images = torch.rand(40, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    images[:, 1] = images[:, 1] * 10 + 4
    train = split_dataset("mine", images.clone(), torch.arange(40) % 2, (20, 10, 10), num_classes=2).train.inputs
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(2))
    assert train.mean((0, 1)).abs().max() > 0.01


def test_split_dataset_leaves_its_arguments_alone() -> None:
    """Cached raw arrays would change from one trial to the next."""
    inputs, labels = torch.arange(40.0).view(20, 2), torch.arange(20) % 2
    kept = inputs.clone()
    split_dataset("mine", inputs, labels, (10, 5, 5), num_classes=2)
    split_dataset("mine", inputs, labels, (10, 5, 5), num_classes=2, transform=lambda x: x.div_(2))
    assert torch.equal(inputs, kept)


def test_separate_test_pool() -> None:
    """The official test images would be mixed into training."""
    inputs, labels = torch.zeros(20, 1), torch.arange(20) % 2
    dataset = split_dataset(
        "mine", inputs, labels, (10, 5, 4), num_classes=2, separate_test=(torch.ones(6, 1), torch.arange(6) % 2)
    )
    assert dataset.train.inputs.abs().max() == 0 and dataset.validation.inputs.abs().max() == 0
    assert dataset.test.inputs.min() == 1 and len(dataset.test) == 4
