"""How often verdicts are wrong: simulated coverage of intervals, false verdicts, and how often true effects are found.

Everything goes through the functions that decide real studies. A full run writes bench/results/statistics_coverage.json
and the tables in docs/guides/verdicts.md; `--quick` takes few repeats and only prints.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from assay.lab.environment import environment
from assay.lab.expectations import Expectation, above, correlates, equivalent, greater
from assay.lab.judge import judge
from assay.lab.record import Record
from assay.lab.statistics import t_interval, t_test

ROOT = Path(__file__).parents[1]
GUIDE, RESULTS = ROOT / "docs/guides/verdicts.md", ROOT / "bench/results/statistics_coverage.json"
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

# Differences with mean 0 and, where it exists, standard deviation 1.
DIFFERENCES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-math.sqrt(3), math.sqrt(3), size=shape),
    "heavy tails (t, 3 df)": lambda rng, shape: rng.standard_t(3, size=shape) / math.sqrt(3),
    "skewed (exponential)": lambda rng, shape: rng.exponential(size=shape) - 1,
    "mirrored exponential": lambda rng, shape: 1 - rng.exponential(size=shape),
}


def bootstrap_interval(samples: np.ndarray, rng: np.random.Generator, resamples: int = 1000) -> np.ndarray:
    """Return percentile bootstrap intervals, shape (2, repeats), of samples (repeats, n)."""
    n = samples.shape[1]
    picked = rng.integers(0, n, size=(resamples, n))
    means = samples[:, picked].mean(axis=-1)
    return np.percentile(means, [2.5, 97.5], axis=1)


def coverage(repeats: int) -> Iterable[dict[str, Any]]:
    """Measure how often a 95 % interval covers the mean of normal differences."""
    for n in (3, 6, 10, 20):
        rng = np.random.default_rng(n)
        samples = rng.normal(size=(repeats, n))
        t = np.array([t_interval(sample) for sample in samples]).T
        bootstrap = np.concatenate([bootstrap_interval(part, rng) for part in np.array_split(samples, 100)], axis=1)
        rates = {name: float(np.mean((i[0] <= 0) & (i[1] >= 0))) for name, i in [("t", t), ("bootstrap", bootstrap)]}
        yield {"seeds": n, "repeats": repeats, **rates, "stderr": math.sqrt(0.05 * 0.95 / repeats)}


def statuses(claims: list[Expectation], trials: Callable[[], dict[str, np.ndarray]], repeats: int) -> list[list[str]]:
    """Judge claims on drawn trials: arm -> values (seeds, metrics); metrics are called x0, x1, ..."""
    found = []
    for _ in range(repeats):
        records = {
            arm: {seed: Record({f"x{i}": float(v) for i, v in enumerate(row)}) for seed, row in enumerate(values)}
            for arm, values in trials().items()
        }
        found.append([outcome.status for outcome in judge(claims, records).outcomes])
    return found


def share(found: list[list[str]], *wanted: str) -> float:
    """Return how often at least one outcome has one of the statuses."""
    return sum(any(status in wanted for status in row) for row in found) / len(found)


def false_verdicts(repeats: int) -> Iterable[dict[str, Any]]:
    """Measure verdicts on a mean that lies exactly at the threshold, where both directions are wrong."""
    for name, draw in DIFFERENCES.items():
        for n in (6, 10):
            rng = np.random.default_rng(n)
            samples = draw(rng, (repeats, n))
            drawn = iter(samples)
            found = statuses([above("x0", 0)], lambda drawn=drawn: {"a": next(drawn)[:, None]}, repeats)
            t_alone = [(t_test(s, 0, "greater"), t_test(s, 0, "less")) for s in samples]
            yield {
                "differences": name, "seeds": n, "repeats": repeats,
                "holds": share(found, "holds"), "fails": share(found, "fails"),
                "either": share(found, "holds", "fails"),
                "either_by_t_alone": float(np.mean(np.min(t_alone, axis=1) <= 0.025)),
            }  # fmt: skip


def false_equivalence(repeats: int) -> Iterable[dict[str, Any]]:
    """Measure how often arms that differ by exactly the margin are called equivalent."""
    for deviation in (0.1, 0.3, 1.0):
        rng = np.random.default_rng(7)
        draw = lambda rng=rng, s=deviation: {"a": 1 + s * rng.normal(size=(6, 1)), "b": np.zeros((6, 1))}  # noqa: E731
        found = statuses([equivalent("x0", within=1)], draw, repeats)
        yield {"deviation_in_margins": deviation, "seeds": 6, "repeats": repeats, "holds": share(found, "holds")}


def false_families(repeats: int) -> Iterable[dict[str, Any]]:
    """Measure how often a study of several claims, all at their thresholds, finds anything."""
    for claims in (1, 3, 10):
        rng = np.random.default_rng(claims)
        draw = lambda rng=rng, k=claims: {"a": rng.normal(size=(8, k))}  # noqa: E731
        found = statuses([above(f"x{i}", 0) for i in range(claims)], draw, repeats)
        yield {"claims": claims, "seeds": 8, "repeats": repeats, "any": share(found, "holds", "fails")}


def correlated(rng: np.random.Generator, arms: int, rho: float, n: int = 6) -> dict[str, np.ndarray]:
    """Draw two metrics over arms, independent between seeds, with correlation rho."""
    x = rng.normal(size=(n, arms))
    y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=(n, arms))
    return {f"arm{i}": np.stack([x[:, i], y[:, i]], axis=1) for i in range(arms)}


def false_correlations(repeats: int) -> Iterable[dict[str, Any]]:
    """Measure claims about rank correlations whose threshold is exactly the true average (of Fisher's z)."""
    for arms, rho in [(k, rho) for k in (4, 6, 8) for rho in (0.0, 0.5, 0.8)]:
        rng = np.random.default_rng(arms)
        claim = correlates("x0", "x1", above=0.0)
        many = claim_values(claim, correlated(rng, arms, rho, n=4_000))
        truth = math.tanh(float(np.mean(many)))
        found = statuses(
            [correlates("x0", "x1", above=truth)], lambda rng=rng, k=arms, r=rho: correlated(rng, k, r), repeats
        )
        yield {"arms": arms, "threshold": truth, "seeds": 6, "repeats": repeats, "holds": share(found, "holds")}


def claim_values(claim: Expectation, arms: dict[str, np.ndarray]) -> list[float]:
    """Return a claim's values per seed on the scale of its test."""
    from assay.lab._samples import Trials

    records = {
        arm: {seed: Record({"x0": float(x), "x1": float(y)}) for seed, (x, y) in enumerate(values)}
        for arm, values in arms.items()
    }
    return [m.value for m in claim.samples(Trials(records))[0].measurements]


def power(repeats: int) -> Iterable[dict[str, Any]]:
    """Measure how often a true difference is found, in units of the standard deviation of the paired differences."""
    for n in (6, 10, 20):
        for effect in (0.5, 1.0, 2.0, 3.0):
            rng = np.random.default_rng(n)
            draw = lambda rng=rng, n=n, e=effect: {"a": e + rng.normal(size=(n, 1)), "b": np.zeros((n, 1))}  # noqa: E731
            found = statuses([greater("x0", "a", "b")], draw, repeats)
            yield {"seeds": n, "effect": effect, "repeats": repeats, "holds": share(found, "holds")}


MEASUREMENTS: dict[str, tuple[Callable[[int], Iterable[dict[str, Any]]], int]] = {
    "coverage": (coverage, 20_000),
    "false_verdicts": (false_verdicts, 5_000),
    "false_equivalence": (false_equivalence, 4_000),
    "false_families": (false_families, 8_000),
    "false_correlations": (false_correlations, 2_000),
    "power": (power, 2_000),
}


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table; rates in percent."""

    def cell(name: str, value: Any) -> str:
        if name in ("effect", "threshold", "deviation_in_margins"):
            return f"{value:.2g}"
        return f"{100 * value:.1f} %" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value

    names = [name for name in rows[0] if name != "stderr"]
    lines = [" | ".join(name.replace("_", " ") for name in names), " | ".join("---" for _ in names)]
    lines += [" | ".join(cell(name, row[name]) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def filled(text: str, results: dict[str, Any]) -> str:
    """Return the guide with each table between its markers replaced by the measured one."""
    for name, rows in results["tables"].items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = before + start + table(rows) + end + rest.partition(end)[2]
    return text


def main() -> None:
    """Measure, print, and after a full run write the results and the guide's tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    start = time.process_time()
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, (measure, repeats) in MEASUREMENTS.items():
        tables[name] = list(measure(repeats // 50 if quick else repeats))
        print(f"\n{name}\n{table(tables[name])}", flush=True)
    if not quick:
        cpu_seconds = round(time.process_time() - start, 1)
        results = {"name": "statistics_coverage", "tables": tables, "cpu_seconds": cpu_seconds}
        RESULTS.write_text(json.dumps({**results, "environment": environment()}, indent=1) + "\n", encoding="utf-8")
        GUIDE.write_text(filled(GUIDE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
