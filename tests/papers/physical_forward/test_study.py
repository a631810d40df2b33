"""What the study of physical-forward adds of its own: drift, and an account without the simulation's operations."""

from __future__ import annotations

import pytest
import torch

from assay.errors import InvalidInput
from assay.models.physical_network import PhysicalNetwork
from assay.papers.physical_forward.study import drifting, study, update_cost
from assay.rules.backprop import Backprop
from assay.rules.physical_forward import PhysicalForward
from assay.streams import Streams


def _arguments(arm: str) -> dict:
    found = dict(study("smoke").arms[arm].describe())
    del found["function"]
    return found


def test_a_trial_repeats_and_its_drop_is_a_difference():
    """Seeds would not repeat, or the drop not be what was lost for good."""
    before = torch.get_rng_state()
    first, second = (drifting(Streams("t", 0), **_arguments("drift/physical-forward")).metrics for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before) and first == second
    assert first["lasting_drop"] == first["before_drift"] - first["after_recovery"]


def test_without_drift_hardware_stays_the_same():
    """The drop would come from something else than the drift."""
    arguments = {**_arguments("drift/in-silico"), "drift": 0.0}
    metrics = drifting(Streams("t", 0), **arguments).metrics
    assert metrics["after_drift"] == metrics["before_drift"]


@pytest.mark.parametrize(
    ("mode", "rows", "digital"), [("block", 4, 8), ("model", 0, None), ("straight-through", 2, None)]
)
def test_digital_operations_leave_the_hardware_out(mode, rows, digital):
    """A simulated system's operations would be charged to the digital computer, or its use not be counted.

    Local learning: 2 rows per sample, 2 blocks, a product forward and one for the weights' gradient, of 2 w^2 each.
    """
    width, x, y = 8, torch.rand(5, 8), torch.arange(5) % 3
    network = PhysicalNetwork((8,), 3, width=width, mode=mode, generator=torch.Generator().manual_seed(0))
    rule = PhysicalForward(network, 3, inner=1) if mode == "block" else Backprop(network)
    systems = [layer.system for layer in network.physical_layers()]
    cost = update_cost(rule, network, x, y)
    assert cost["hardware_rows"] == rows
    if digital is not None:
        assert cost["digital_operations"] == digital * 2 * width**2
    assert all(a is b.system for a, b in zip(systems, network.physical_layers(), strict=True))


def test_schemes_differ_in_how_gradients_meet_the_hardware_only():
    """Arms that compete would have other data, budgets, tuning or networks."""
    arms = study("desk").arms
    assert study("desk").unsourced() == []
    for data in ("mnist", "digits"):
        plain = []
        for scheme in ("physical-forward", "in-silico", "physics-aware", "backprop-ideal", "random-blocks"):
            found = dict(arms[f"{data}/{scheme}"].describe())
            found.pop("rule", None)
            assert "label_slots=True" in found["model"] and "width=128" in found.pop("model")
            plain.append(found)
        assert all(other == plain[0] for other in plain)


def test_an_unknown_scale_is_refused():
    """A misspelt scale would fail with a KeyError."""
    with pytest.raises(InvalidInput, match="no scale 'huge'"):
        study("huge")
