"""Label memorisation: counted by hand, and in a watch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.memorised_labels import LabelMemorisation, label_memorisation
from assay.watch import Watch


def test_shares_are_those_counted_sample_by_sample() -> None:
    """Recovered samples would count as memorised, or right labels would be among them."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 4, generator=generator)
    given, clean = (torch.randint(4, (200,), generator=generator) for _ in range(2))
    wrong = [i for i in range(200) if given[i] != clean[i]]
    right = [i for i in range(200) if given[i] == clean[i]]
    predicted = [max(range(4), key=row.__getitem__) for row in scores.tolist()]
    values = label_memorisation(scores, given, clean)
    assert values["memorised"] == sum(predicted[i] == given[i] for i in wrong) / len(wrong)
    assert values["recovered"] == sum(predicted[i] == clean[i] for i in wrong) / len(wrong)
    assert values["right_labels_fitted"] == sum(predicted[i] == given[i] for i in right) / len(right)


def test_a_watch_measures_a_network_that_memorises_and_one_that_knows() -> None:
    """The probe would read other samples than its own, or mix up given and clean."""
    x, clean = torch.eye(6), torch.arange(6) % 3
    given = (clean + torch.tensor([1, 0, 0, 2, 0, 0])) % 3
    model = nn.Linear(6, 3, bias=False)
    watch = Watch(model, [LabelMemorisation(x, given, clean, batch_size=4)], data=(torch.zeros(2, 6), clean[:2]))
    for labels, expected in ((given, (1.0, 0.0)), (clean, (0.0, 1.0))):
        model.weight.data = torch.eye(3)[labels].T
        values = watch.measure(int(expected[0]))
        assert (values["memorised"], values["recovered"], values["right_labels_fitted"]) == (*expected, 1.0)


def test_without_wrong_labels_it_says_so() -> None:
    """Zero memorised would be reported where nothing could be."""
    y = torch.arange(3)
    watch = Watch(nn.Identity(), [LabelMemorisation(torch.eye(3), y, y)], data=(torch.eye(3), y))
    values = watch.measure(0)
    assert math.isnan(values["memorised"]) and watch.skipped["memorised"] == "no label is wrong"


@pytest.mark.parametrize("sizes", [(3, 2, 3), (0, 0, 0)])
def test_bad_input_is_one_clear_error(sizes: tuple[int, int, int]) -> None:
    """Labels would be compared with other samples' labels."""
    with pytest.raises(InvalidInput, match="one given and one clean label per input"):
        LabelMemorisation(torch.zeros(sizes[0], 2), *(torch.zeros(n, dtype=torch.long) for n in sizes[1:]))
