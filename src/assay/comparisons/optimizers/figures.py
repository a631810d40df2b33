"""The plots of the comparison of optimizers, from its recorded trials."""

from __future__ import annotations

import math
import statistics

import numpy as np
from matplotlib.figure import Figure

from assay.comparisons._drawing import Trials, colours, dots, label_ends, panels, tidy, values
from assay.comparisons.optimizers.study import METHODS, REFERENCE, TARGETS
from assay.lab.performance_profiles import Profile, profiles

__all__ = ["figures", "scores"]

TAU_MAX = 4.0


def figures(trials: Trials) -> dict[str, Figure]:
    """Return the plots by name.

    Args:
        trials: The final trials as `trials.json` has them.
    """
    return {
        "test-loss": _losses(trials),
        "profiles": _profiles(_everywhere(trials)),
    }


def times(trials: Trials) -> dict[str, dict[str, float]]:
    """Return the passes until the validation target by method and "task, seed"; infinite where it was missed."""
    found: dict[str, dict[str, float]] = {}
    for trial in trials:
        task, _, method = trial["arm"].rpartition("/")
        series = trial["series"].get("validation_loss", {"steps": [], "values": []})
        reached = (
            step
            for step, value in zip(series["steps"], series["values"], strict=True)
            if trial["status"] == "done" and value is not None and value <= TARGETS[task]
        )
        found.setdefault(method, {})[f"{task}, {trial['seed']}"] = next(reached, math.inf)
    return found


def _everywhere(trials: Trials) -> dict[str, Profile]:
    """Return the profiles of the methods that were run on every task."""
    found = times(trials)
    workloads = max(found.values(), key=len)
    return profiles({method: row for method, row in found.items() if len(row) == len(workloads)})


def scores(trials: Trials) -> list[tuple[str, float, float]]:
    """Return (method, score, share of targets reached) from best to worst; see `assay.lab.performance_profiles`."""
    rows = ((method, profile.score(TAU_MAX), _reached(profile)) for method, profile in _everywhere(trials).items())
    return sorted(rows, key=lambda row: -row[1])


def _reached(profile: Profile) -> float:
    return sum(math.isfinite(ratio) for ratio in profile.ratios) / len(profile.ratios)


def _losses(trials: Trials) -> Figure:
    losses = values(trials, "test_loss")
    figure, axes = panels(len(losses), len(METHODS))
    for panel, (task, row) in zip(axes, losses.items(), strict=True):
        dots(panel, row, list(METHODS), REFERENCE)
        # A method that failed must not squeeze the others into a corner.
        centre = statistics.fmean(row[REFERENCE])
        shown = [v for sample in row.values() for v in sample if v < 2 * centre]
        panel.set_xlim(min(shown) - 0.05 * centre, max(shown) + 0.05 * centre)
        panel.set_title(task, fontsize=9)
    figure.supxlabel("test loss: mean and 95 % interval (losses above twice AdamW's lie outside)", fontsize=9)
    return figure


def _profiles(found: dict[str, Profile]) -> Figure:
    figure = Figure(figsize=(8.0, 4.8))
    axes = figure.add_axes((0.1, 0.12, 0.66, 0.85))
    paint, ends = colours([*METHODS], REFERENCE), {}
    grid = np.linspace(1, TAU_MAX, 301)
    for method, profile in found.items():
        shares = [profile.share(tau) for tau in grid]
        axes.step(grid, shares, where="post", color=paint[method], linewidth=1.3)
        ends[method] = (TAU_MAX, shares[-1])
    axes.set_xlim(1, TAU_MAX)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("time to target over the fastest method's", fontsize=9)
    axes.set_ylabel("share of tasks and seeds", fontsize=9)
    tidy(axes)
    label_ends(axes, ends, paint, gap=0.05)
    return figure
