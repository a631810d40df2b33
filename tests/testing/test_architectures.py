"""Which rule trains which network, and the guide's table of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.testing._architectures import ARCHITECTURES, public_rules, table, trained_by

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "learning-rules.md"


def test_the_guide_shows_the_table() -> None:
    """The guide would tell of rules or networks as they were once; `make generate` fills it."""
    shown = GUIDE.read_text(encoding="utf-8").partition("<!-- architectures:begin -->\n")[2]
    assert shown.partition("\n<!-- architectures:end -->")[0] == table()


def test_every_rule_trains_some_network() -> None:
    """A rule would have an empty row: none of the networks is its own."""
    for name in public_rules():
        assert any(trained_by(name, model) is not None for model in ARCHITECTURES.values()), name


@pytest.mark.parametrize(
    ("rule", "network", "trains"),
    [
        ("Backprop", "MLP", True),
        ("Backprop", "PhysicalNetwork", False),  # no gradient crosses a physical system
        ("ForwardForward", "CNN", False),  # defined for Linear - ReLU only
        ("NoProp", "MLP", False),  # needs blocks that denoise labels
        ("NoProp", "NoPropNet", True),
        ("PhysicalForward", "PhysicalNetwork", True),
    ],
)
def test_what_is_known_of_rules_is_found(rule: str, network: str, trains: bool) -> None:
    """The table would say that a rule trains what it is not defined on, or refuses its own network."""
    assert (trained_by(rule, ARCHITECTURES[network]) is not None) == trains
