"""What an update keeps in memory as networks become deeper."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch

import assay.rules
from assay.names import resolve
from assay.rules.rule import Rule
from assay.testing._rule_settings import DEEP, Deep
from assay.testing._tensor_memory import peak_tensor_bytes

BATCH, WIDTH, CLASSES = 48, 24, 10


def _build(deep: Deep, depth: int) -> Rule:
    model = resolve("models", deep.network.format(depth=depth, width=WIDTH))((WIDTH,), CLASSES)
    make = resolve("rules", deep.rule.format(depth=depth))
    takes = inspect.signature(make).parameters
    return make(model, **({"num_classes": CLASSES} if "num_classes" in takes else {}))


def _peak(rule: Rule) -> int:
    """Return the peak of a step in the first and the last phase, gradients left out."""
    x, y = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0)), torch.arange(BATCH) % CLASSES
    peaks = []
    for phase in {rule.phase_names[0], rule.phase_names[-1]}:
        rule.begin(phase)
        optimizer = torch.optim.SGD(rule.trained_parameters(), lr=0.01, foreach=False)
        step = partial(rule.step, x, y, optimizer)
        step()
        peaks.append(peak_tensor_bytes(step, lambda: [p.grad for p in rule.parameters() if p.grad is not None]))
    return max(peaks)


def test_backpropagation_keeps_every_block() -> None:
    """The ruler would see nothing: the activations of all blocks are kept until the backward pass."""
    peaks = [_peak(_build(Deep("backprop"), depth)) for depth in (4, 16)]
    assert peaks[1] - peaks[0] == 12 * BATCH * WIDTH * 4


@pytest.mark.parametrize("name", DEEP)
def test_local_rules_keep_one_block_at_a_time(name: str) -> None:
    """A rule whose blocks learn alone would hold all their activations or graphs at once."""
    peaks = [_peak(_build(DEEP[name], depth)) for depth in (4, 16)]
    if _build(DEEP[name], 1).local:
        assert peaks[1] <= 1.05 * peaks[0], f"{peaks[1]} bytes at depth 16, {peaks[0]} at depth 4"
    else:
        assert peaks[1] >= 0.95 * peaks[0]


def test_every_local_rule_is_measured() -> None:
    """A new local rule would escape."""
    measured = {
        getattr(make, "func", make) for make in (resolve("rules", deep.rule.format(depth=1)) for deep in DEEP.values())
    }
    public = {getattr(assay.rules, name) for name in assay.rules.__all__}
    local = {part for part in public if isinstance(part, type) and issubclass(part, Rule) and part.local}
    assert not local - measured, f"add {local - measured} to assay/testing/_rule_settings.py"
