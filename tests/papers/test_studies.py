"""Every study of a paper or a comparison: it builds at every scale, says its sources, and runs at smoke scale."""

from __future__ import annotations

import pytest

from assay.cards import load_cards, load_comparisons, study_module
from assay.cli.run import run_paper

IMPLEMENTED = [card for card in (*load_cards(), *load_comparisons()) if card.status == "implemented"]


@pytest.mark.parametrize("card", IMPLEMENTED, ids=lambda card: card.id)
@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_a_study_is_whole(card, scale):
    """Claim, limits, two arms, an expectation and the source of every hyper-parameter, at every scale."""
    study = study_module(card).study(scale)
    assert study.claim and study.limits
    assert len(study.arms) >= 2 and study.expects
    assert study.unsourced() == []
    assert scale == "smoke" or study.seeds >= 6


@pytest.mark.parametrize("card", IMPLEMENTED, ids=lambda card: card.id)
def test_a_study_runs_and_resumes(card, tmp_path):
    """At smoke scale every trial ends, a verdict comes out, and a second run does nothing and says the same."""
    store = tmp_path / "store.sqlite"
    first = run_paper(card.id, scale="smoke", seeds=2, store=store, quiet=True)
    again = run_paper(card.id, scale="smoke", seeds=2, store=store, quiet=True)
    assert first["resumed"] == 0 and again["resumed"] == len(again["trials"]) == len(first["trials"])
    assert first["verdict"] == again["verdict"]
    assert first["verdict"]["status"] == "inconclusive", "two seeds can never decide"
    assert all(trial["status"] in ("done", "diverged") for trial in first["trials"])
