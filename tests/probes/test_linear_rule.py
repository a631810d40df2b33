"""Agreement with the one-step linear classifier."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.linear_rule import LinearAgreement, linear_agreement
from assay.watch import Watch


def _data(K: int, n: int = 40, p: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, p, generator=generator), torch.randint(K, (n,), generator=generator)
    return x, y, torch.randn(70, p, generator=generator)


def test_with_two_classes_it_is_the_papers_sign() -> None:
    """The linear function would not be sum_i y_i <x_i, x>."""
    x, y, new = _data(2)
    signs = torch.tensor(
        [sum((2 * int(c) - 1) * float(row @ point) for row, c in zip(x, y, strict=True)) for point in new]
    )
    scores = torch.randn(70, 2, generator=torch.Generator().manual_seed(1))
    expected = ((scores[:, 1] > scores[:, 0]) == (signs > 0)).double().mean().item()
    assert linear_agreement(scores, x, y, new) == expected
    assert linear_agreement(torch.stack([-signs, signs], dim=1), x, y, new) == 1.0
    assert linear_agreement(torch.stack([signs, -signs], dim=1), x, y, new) == 0.0


@pytest.mark.parametrize("K", [2, 4])
def test_it_is_one_gradient_step_of_softmax_regression_from_zero(K: int) -> None:
    """For more than two classes the classifier would be another one than the first gradient step gives."""
    x, y, new = _data(K, seed=2)
    model = nn.Linear(6, K, bias=False)
    nn.init.zeros_(model.weight)
    F.cross_entropy(model(x), y).backward()
    stepped = new @ -model.weight.grad.T  # type: ignore[union-attr]
    assert linear_agreement(stepped, x, y, new) == 1.0


def test_the_probe_is_the_function_whatever_the_batches() -> None:
    """Watch would show another number than the function on all data at once."""
    x, y, new = _data(3, seed=3)
    labels = torch.arange(70) % 3
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    values = Watch(model, [LinearAgreement((new, labels), batch_size=16)], (x, y), batch_size=7).measure(0)
    with torch.no_grad():
        scores, seen = model(new), model(x)
    assert values["linear_agreement"] == linear_agreement(scores, x, y, new)
    assert values["accuracy_held_out"] == (scores.argmax(1) == labels).double().mean().item()
    assert values["accuracy_seen"] == (seen.argmax(1) == y).double().mean().item()
    linear = torch.stack([x[y == k].sum(dim=0) for k in range(3)]) @ new.T
    assert values["linear_accuracy_held_out"] == (linear.argmax(0) == labels).double().mean().item()


def test_scores_that_are_not_finite_are_said() -> None:
    """NaN scores would count as decisions for class 0."""
    x, y, new = _data(2)
    model = nn.Linear(6, 2)
    nn.init.constant_(model.weight, math.nan)
    watch = Watch(model, [LinearAgreement((new, torch.zeros(70, dtype=torch.long)))], (x, y))
    values = watch.measure(0)
    assert all(math.isnan(value) for value in values.values())
    assert watch.skipped["linear_agreement"] == "the inputs or the scores contain NaN or infinity"


def test_inputs_that_have_no_linear_classifier_are_refused() -> None:
    """Token numbers would be taken for coordinates, or sizes that do not fit would fail deep inside."""
    x, y, new = _data(2)
    with pytest.raises(InvalidInput, match=r"float tensors, not torch\.int64"):
        linear_agreement(torch.zeros(40, 2), x.long(), y, new)
    with pytest.raises(InvalidInput, match="held-out inputs have 5 features, those seen 6"):
        linear_agreement(torch.zeros(70, 2), x, y, new[:, :5])
    with pytest.raises(InvalidInput, match=r"labels must lie in 0\.\.1"):
        linear_agreement(torch.zeros(70, 2), x, y + 1, new)
