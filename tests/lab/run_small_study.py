"""Run a small study and print what it gave; the test of `kill -9` starts this again and again."""

from __future__ import annotations

import json
import sys

from lab_arms import Draw, make_study, outcome

from assay.lab.expectations import greater
from assay.lab.run import run

if __name__ == "__main__":
    store, log = sys.argv[1:]
    arms = {f"arm {i}": Draw(float(i), seconds=0.15, log=log) for i in range(6)}
    study = make_study(arms, expects=[greater("value", "arm 1", "arm 0", margin=0.5)])
    result = run(study, task="kill", scale="smoke", seeds=10, store=store, jobs=2)
    # Here, since it takes longer to import than most of the kills leave.
    from assay.lab.judge import judge

    verdict = judge(study.expects, result.records).to_plain()
    found = {f"{t.key} {t.arm} {t.seed}": repr(outcome(record)) for t, record in result.trials}
    print(json.dumps({"outcomes": found, "resumed": result.resumed, "verdict": verdict}))
