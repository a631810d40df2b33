from __future__ import annotations

import pickle

from assay.lab.plan import candidates, canonical
from assay.lab.record import Record
from assay.lab.tuned_call import TunedCall
from assay.streams import Streams


def fit(streams: Streams, *, a: float, b: int, validation_only: bool = False) -> Record:
    """Score a setting; test data only where they may be looked at."""
    return Record(metrics={"validation_score": a * b} if validation_only else {"test": a * b})


def test_every_combination_is_a_candidate_that_sees_validation_data_only() -> None:
    """Settings would be left out, chosen on test data, or taken for one trial."""
    arm = TunedCall(fit, {"a": 1.0, "b": 1}, tune={"a": (1.0, 2.0), "b": (3, 4, 5)})
    points = candidates(arm)
    assert [point.overrides for point in points] == [{"a": a, "b": b} for a in (1.0, 2.0) for b in (3, 4, 5)]
    assert len({canonical(point.describe()) for point in (*points, arm)}) == 7
    point = pickle.loads(pickle.dumps(points[-1]))
    assert point(Streams("t", 0)).metrics == {"validation_score": 10.0}
    assert point.final()(Streams("t", 0)).metrics == {"test": 10.0} and not candidates(point.final())


def test_a_changed_copy_keeps_the_grid() -> None:
    """Arms that compete would be tuned unequally."""
    changed = TunedCall(fit, {"a": 1.0, "b": 1}, tune={"a": (1.0, 2.0)}).but(b=7)
    assert [point(Streams("t", 0)).metrics["validation_score"] for point in candidates(changed)] == [7.0, 14.0]
