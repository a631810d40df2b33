"""Make the report's test inputs: synthetic trials (not measurements of anything), judged by the real judge.

Run `python tests/golden/report/make.py` after a change to the records' or the verdict's layout; it rewrites
`cards.json`, `results.json` and, from them, the expected pages.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.lab.evidence import load_evidence, save_evidence
from assay.lab.expectations import Expectation, below, correlates, equivalent, greater, less, ratio
from assay.lab.judge import judge
from assay.lab.quantities import reach
from assay.lab.record import Record, Series
from assay.lab.report import build_report

HERE = Path(__file__).parent
ENVIRONMENT = {
    "python": "3.11.9", "assay": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "platform": "Linux x86_64",
    "processor": "Example CPU @ 2.60GHz", "cores": 2, "memory_bytes": 8 * 2**30,
}  # fmt: skip
HOSTILE = "<script>alert(1)</script> \"quoted\" 'single' & $x^2$"
EXPECTED = ("index.html", "studies/even-ends.html", "runs/train-mlp.html")


def curve(rng: np.random.Generator, end: float, start: float, rate: float, epochs: int, noise: float) -> Series:
    """Return a series that approaches `end` from `start`."""
    steps = np.arange(1, epochs + 1)
    values = end + (start - end) * np.exp(-rate * steps) * np.exp(rng.normal(0, noise, epochs))
    return Series(tuple(map(float, steps)), tuple(float(f"{v:.5g}") for v in values))


def record(
    seed: int, arm: int, *, accuracy: float, collapse: float = 0.05, epochs: int = 24, noise: float = 0.004,
    cost: float = 1.0, rate: float = 0.25,
) -> Record:  # fmt: skip
    """Return one synthetic trial; trials of one seed share that seed's luck."""
    luck, own = np.random.default_rng([7, seed]), np.random.default_rng([8, seed, arm])
    shift = luck.normal(0, noise) + own.normal(0, noise / 3)
    final = min(accuracy + shift, 1.0)
    series = {
        "test_accuracy": curve(own, final, 0.1, rate, epochs, 0.08),
        "train_accuracy": curve(own, min(final + 0.02, 1.0), 0.1, rate * 1.1, epochs, 0.08),
        "train_loss": curve(own, 0.02, 2.3, rate, epochs, 0.1),
        "nc1": curve(own, collapse * np.exp(shift * 20), 40 * collapse + 3, rate, epochs, 0.15),
    }
    metrics = {name: s.values[-1] for name, s in series.items()}
    resources = {
        "seconds": cost * (1 + abs(own.normal(0, 0.03))), "cpu_seconds": cost * (1.02 + abs(own.normal(0, 0.02))),
        "peak_memory": 2.0**24 * (1 + arm), "parameters": 85_002.0, "epochs": float(epochs),
    }  # fmt: skip
    return Record(metrics, series, resources=resources)


def result(
    paper: str, records: dict[str, dict[int, Record]], expects: Sequence[Expectation], *, title: str = "",
    claim: str = "", settings: dict[str, dict[str, Any]] | None = None, tuned: dict[str, dict[str, Any]] | None = None,
    tuning: int = 0, scale: str = "desk",
) -> dict[str, Any]:  # fmt: skip
    """Return a plain result as `assay.lab.results` makes it."""
    shared = {"data": "digits", "model": "mlp(width=256, depth=3)", "epochs": 24, "batch_size": 64}
    sources = {
        "data": "scaled down because MNIST takes hours",
        "model": "section 4.1",
        "epochs": "scaled down because the curves are flat by then",
    }
    arms = {
        arm: {
            "description": {},
            "tuned": (tuned or {}).get(arm, {}),
            "hyperparameters": [
                {"name": name, "value": value, "source": sources.get(name, "table 3")}
                for name, value in {**shared, **(settings or {}).get(arm, {})}.items()
            ],
        }
        for arm in records
    }
    trials = [
        {"key": f"{arm}-tune-{i}", "arm": arm, "seed": 0, "stage": "tune", "status": "done",
         "metrics": {"validation_score": 0.9 + i / 100}, "series": {}, "resources": {"seconds": 1.0}}
        for arm in records for i in range(tuning)
    ]  # fmt: skip
    trials += [
        {"key": f"{arm}-{seed}", "arm": arm, "seed": seed, "stage": "final", **r.to_plain()}
        for arm, by_seed in records.items()
        for seed, r in by_seed.items()
    ]
    seeds = len(next(iter(records.values())))
    return {
        "kind": "study" if expects else "train",
        "paper": paper,
        "title": title or paper,
        "scale": scale,
        "seeds": seeds,
        "claim": claim,
        "limits": "Synthetic numbers show nothing; on real data the width of the paper's networks would be out of reach.",
        "covers": "the split of the data, the initial weights and the order of the mini-batches",
        "arms": arms,
        "expectations": [e.to_plain() for e in expects],
        "verdict": judge(expects, records).to_plain() if expects else None,
        "resources": {"trials": len(trials), "seconds": 131.2, "cpu_seconds": 128.4, "peak_memory": 2.0**26},
        "environment": ENVIRONMENT,
        "command": f"assay run {paper} --scale {scale} --seeds {seeds}"
        if expects
        else f"assay train --model mlp --seeds {seeds}",
        "recorded": "2030-01-02",
        "trials": trials,
    }


def even_ends(paper: str = "even-ends", seeds: int = 6) -> dict[str, Any]:
    """A claim that holds: four losses end alike."""
    ends = {"cross-entropy": 0.965, "label-smoothing": 0.966, "focal": 0.9645, "mse": 0.9655}
    losses = {"cross-entropy": "cross-entropy", "label-smoothing": "cross-entropy(label_smoothing=0.1)",
              "focal": "focal(gamma=3)", "mse": "mse"}  # fmt: skip
    records = {
        arm: {s: record(s, i, accuracy=end, collapse=0.02 + 0.005 * i) for s in range(seeds)}
        for i, (arm, end) in enumerate(ends.items())
    }
    return result(
        paper, records, [equivalent("test_accuracy", within=0.01), below("nc1", 0.1)],
        claim="Cross-entropy, label smoothing, focal loss and MSE all end in neural collapse and generalise alike.",
        settings={arm: {"loss": loss, "optimizer": "sgd(lr=0.05, momentum=0.9)"} for arm, loss in losses.items()},
    )  # fmt: skip


def early_riser(paper: str = "early-riser", seeds: int = 6) -> dict[str, Any]:
    """A claim that holds in part and fails in part, with tuning and a reached level."""
    records = {
        "adamw": {s: record(s, 0, accuracy=0.12, rate=0.02) for s in range(seeds)},
        "adamw + decay": {s: record(s, 1, accuracy=0.95, rate=0.12) for s in range(seeds)},
        "perp-grad": {s: record(s, 2, accuracy=0.96, rate=0.5, cost=1.4) for s in range(seeds)},
    }
    expects = [
        less(reach("test_accuracy", above=0.8), "perp-grad", "adamw + decay"),
        greater("test_accuracy", "perp-grad", "adamw", margin=0.3),
        ratio("seconds", "perp-grad", "adamw", below=1.1),
    ]
    return result(
        paper, records, expects, claim="Projecting the gradient removes the delay before generalisation, at no cost.",
        settings={"adamw": {"optimizer": "adamw(lr=0.01, weight_decay=0)"},
                  "adamw + decay": {"optimizer": "adamw(lr=0.01, weight_decay=1)", "tune": {"optimizer.weight_decay": [0.1, 1.0]}},
                  "perp-grad": {"optimizer": "adamw(lr=0.01, weight_decay=0)", "transforms": ["perp-grad"]}},
        tuned={"adamw + decay": {"optimizer.weight_decay": 1.0}}, tuning=2,
    )  # fmt: skip


def open_question(paper: str = "open-question", seeds: int = 6) -> dict[str, Any]:
    """A claim that stays open: one trial diverged, one ran out of time."""
    records = {
        arm: {s: record(s, i, accuracy=end, noise=0.012) for s in range(seeds)}
        for i, (arm, end) in enumerate({"backprop": 0.962, "mono-forward": 0.964, "forward-forward": 0.93}.items())
    }
    broken = records["forward-forward"][1]
    short = {name: Series(s.steps[:9], (*s.values[:8], float("nan"))) for name, s in broken.series.items()}
    lost = dict.fromkeys(broken.metrics, float("nan"))
    records["forward-forward"][1] = Record(lost, short, resources=broken.resources, status="diverged")
    records["forward-forward"][2] = Record({}, {}, resources={"seconds": 60.0}, status="timeout")
    expects = [
        greater("test_accuracy", "mono-forward", "backprop"),
        greater("test_accuracy", "backprop", "forward-forward"),
    ]
    return result(paper, records, expects, claim="Layer-wise training matches backpropagation.")


def together(paper: str = "together", seeds: int = 6) -> dict[str, Any]:
    """A claim about how two quantities go together across arms."""
    records = {
        f"width {8 * 2**i}": {s: record(s, i, accuracy=0.9 + 0.012 * i, collapse=0.4 / 2**i) for s in range(seeds)}
        for i in range(6)
    }
    expects = [correlates("nc1", "test_accuracy", below=-0.5)]
    return result(paper, records, expects, claim="The more collapsed, the more accurate.")


def train_run(paper: str = "train-mlp", seeds: int = 3) -> dict[str, Any]:
    """A run of `assay train`: no claim, no verdict."""
    records = {"mlp": {s: record(s, 0, accuracy=0.95) for s in range(seeds)}}
    return result(paper, records, [], title="train: mlp on digits", scale="desk")


def hostile(paper: str = HOSTILE) -> dict[str, Any]:
    """A result whose every text is markup."""
    records = {
        HOSTILE: {s: record(s, 0, accuracy=0.9) for s in range(2)},
        'b"><img src=x onerror=alert(1)>': {s: record(s, 1, accuracy=0.9) for s in range(2)},
    }
    for by_seed in records.values():
        for seed in by_seed:
            series = {HOSTILE: Series((1.0, 2.0), (0.5, 0.6), unit=HOSTILE)}
            by_seed[seed] = Record({HOSTILE: 0.5 + seed}, series, resources={HOSTILE: 1.0})
    made = result(
        paper, records, [below(HOSTILE, 0.1)], title=HOSTILE, claim=HOSTILE, scale=HOSTILE,
        settings={arm: {HOSTILE: arm, "</table>": HOSTILE} for arm in records},
    )  # fmt: skip
    for key in ("limits", "covers", "command", "recorded"):
        made[key] = HOSTILE
    made["environment"] = {HOSTILE: HOSTILE}
    made["resources"] = {HOSTILE: 1.0}
    made["verdict"]["method"] = HOSTILE
    return made


def cards() -> list[dict[str, Any]]:
    """Return cards in every state."""

    def card(identifier: str, seam: str, status: str, title: str, **more: Any) -> dict[str, Any]:
        return {"id": identifier, "title": title, "seam": seam, "authors": ["Ada Example", "Ben Sample"], "year": 2030, "venue": "Example",
                "reference": "arXiv:2301.00001", "summary": f"What {title.lower()} is about, in one line.", "status": status, **more}  # fmt: skip

    parts = {"stability": "experimental", "parts": ["assay.losses.FocalLoss"], "probes": ["assay.probes.NeuralCollapse"],
             "equations": ["assay.losses.FocalLoss: eq. (4)"], "official_code": "owner/name"}  # fmt: skip
    return [
        card("even-ends", "losses", "implemented", "Even Ends: All Losses Are Alike", **parts),
        card("early-riser", "optim", "implemented", "Early Riser", **parts),
        card("open-question", "rules", "implemented", "An Open Question"),
        card("together", "probes", "implemented", "Together"),
        card("waiting", "losses", "implemented", "Waiting for Its Run"),
        card("someday", "graph", "planned", "Someday"),
        card("hostile-card", "nn", "planned", HOSTILE, reference="javascript:alert(1)", official_code="../../evil"),
    ]


def results() -> list[dict[str, Any]]:
    """Return results of every kind."""
    return [even_ends(), early_riser(), open_question(), together(), train_run(), hostile()]


def without_curves(page: str) -> str:
    """Return a page without the insides of matplotlib's drawings, which differ between its versions."""
    return re.sub(r'(<svg class="plot"[^>]*>).*?(</svg>)', r"\1\2", page, flags=re.DOTALL)


def main() -> int:
    """Rewrite the inputs and the expected pages."""
    stored = []
    with tempfile.TemporaryDirectory() as folder:
        for number, made in enumerate(results()):
            save_evidence(made, Path(folder, str(number)))
            stored.append(load_evidence(Path(folder, str(number))))
        Path(HERE, "cards.json").write_text(json.dumps(cards(), indent=1) + "\n")
        Path(HERE, "results.json").write_text("[\n" + ",\n".join(map(json.dumps, stored)) + "\n]\n")
        build_report(cards(), stored, Path(folder, "report"))
        for name in EXPECTED:
            expected = HERE / "expected" / name
            expected.parent.mkdir(parents=True, exist_ok=True)
            expected.write_text(without_curves(Path(folder, "report", name).read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
