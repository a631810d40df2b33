"""Plan a study: every trial with its key, computed from plain data before anything runs.

A trial's key is the SHA-256 hash of what decides its outcome: the arm's description, seed, scale, task, the study's
version and the engine's protocol version. The arm's name is not part of it, nor is anything of the other arms. What
is not part of it either: the time limit and the versions of installed packages, so raise `Study.version` to run a
study afresh after a change to one of these. Nothing here imports torch or touches data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from assay.errors import InvalidInput

if TYPE_CHECKING:
    from assay.lab.arms import Arm, Candidate
    from assay.lab.study import Study

# `plan` itself is missing here: in the namespace of `assay.lab` the name belongs to this module.
__all__ = ["PROTOCOL", "Trial", "candidates", "canonical", "plain_study", "plan_final", "plan_tuning", "trial_key"]

PROTOCOL = 1
FIRST_TUNING_SEED = 10_000


@dataclass(frozen=True)
class Trial:
    """One arm with one seed at one scale.

    Args:
        key: The hash that names the trial in the store.
        task: What is being compared, usually the paper's id; it decides the random streams.
        arm: The arm's name in the study.
        seed: Index of the repetition; those of tuning trials start at 10000.
        scale: "smoke", "desk" or "paper".
        stage: "tune" or "final".
        description: The arm (or tuning candidate) as plain data.
        call: The arm itself; None for a trial that was read back from a store.
    """

    key: str
    task: str
    arm: str
    seed: int
    scale: str
    stage: str
    description: Mapping[str, Any]
    call: Arm | Candidate | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"arm {self.arm!r}, seed {self.seed}"


def canonical(data: Any) -> str:
    """Return the one JSON text of plain data: sorted keys, no spaces, ASCII.

    Args:
        data: None, bool, int, finite float, str, and lists and dicts (with string keys) of them; a tuple is a list.

    Raises:
        InvalidInput: If anything else is in it, with the place where.

    Example:
        >>> canonical({"lr": 0.1, "betas": (0.9, 0.999)})
        '{"betas":[0.9,0.999],"lr":0.1}'
    """
    _check_plain(data, "description")
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_plain(data: Any, place: str) -> None:
    if isinstance(data, Mapping):
        for key, value in data.items():
            if not isinstance(key, str):
                raise InvalidInput(f"{place} has the key {key!r}; keys of plain data are strings")
            _check_plain(value, f"{place}[{key!r}]")
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            _check_plain(value, f"{place}[{i}]")
    elif isinstance(data, float) and not math.isfinite(data):
        raise InvalidInput(f"{place} is {data!r}, which JSON does not know; write it as the string {str(data)!r}")
    elif not (data is None or isinstance(data, bool | int | float | str)):
        raise InvalidInput(
            f"{place} is {data!r} ({type(data).__name__}); a trial's key is made of plain data only: "
            "None, bool, int, float, str, and lists and dicts of them"
        )


def trial_key(description: Mapping[str, Any], seed: int, scale: str, task: str, version: int = 1) -> str:
    """Return a trial's key: 64 hexadecimal digits.

    Args:
        description: The arm as plain data.
        seed: Index of the repetition.
        scale: "smoke", "desk" or "paper".
        task: Usually the paper's id.
        version: The study's version.

    Raises:
        InvalidInput: If the description holds anything but plain data.
    """
    parts = {"protocol": PROTOCOL, "version": version, "task": task, "scale": scale, "seed": seed, "arm": description}
    return hashlib.sha256(canonical(parts).encode("ascii")).hexdigest()


def candidates(arm: Arm) -> Sequence[Candidate]:
    """Return the points of an arm's own tuning grid; none where nothing is tuned."""
    tuning = getattr(arm, "tuning", None)
    return tuple(tuning() or ()) if tuning is not None else ()


def _trial(study: Study, task: str, scale: str, arm: str, seed: int, stage: str, call: Arm | Candidate) -> Trial:
    try:
        description = call.describe()
        key = trial_key(description, seed, scale, task, study.version)
    except InvalidInput as error:
        raise InvalidInput(f"arm {arm!r}: {error}") from error
    return Trial(key, task, arm, seed, scale, stage, description, call)


def plan_tuning(study: Study, *, task: str, scale: str) -> list[list[list[Trial]]]:
    """Return the tuning trials, by tuned arm, candidate and seed.

    Raises:
        InvalidInput: If the arms that are tuned do not all have the same number of candidates.
    """
    grids = {name: candidates(arm) for name, arm in study.arms.items()}
    sizes = {name: len(grid) for name, grid in grids.items() if grid}
    if len(set(sizes.values())) > 1:
        raise InvalidInput(
            "the tuning budget must be equal, but the arms have different numbers of candidates: "
            + ", ".join(f"{name!r} {size}" for name, size in sizes.items())
        )
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + study.tune_seeds)
    return [
        [[_trial(study, task, scale, name, seed, "tune", point) for seed in seeds] for point in grids[name]]
        for name in sizes
    ]


def plan_final(study: Study, arms: Mapping[str, Arm], *, task: str, scale: str, seeds: int) -> list[Trial]:
    """Return the final trials of the given arms, seed by seed, so that an unfinished run has whole pairs."""
    return [_trial(study, task, scale, name, seed, "final", arm) for seed in range(seeds) for name, arm in arms.items()]


def plan(study: Study, *, task: str, scale: str, seeds: int) -> list[Trial]:
    """Return all trials that are known before anything runs.

    These are the tuning trials and the final trials of the arms that are not tuned; which setting of a tuned arm
    runs in the end is known only after tuning.

    Args:
        study: The claim and its arms.
        task: Usually the paper's id.
        scale: "smoke", "desk" or "paper".
        seeds: Repetitions of each arm.

    Raises:
        InvalidInput: If there are no seeds, or too many, or an arm does not describe itself as plain data.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= FIRST_TUNING_SEED:
        raise InvalidInput(f"seeds must be a whole number from 1 to {FIRST_TUNING_SEED}, not {seeds!r}")
    tuning = [t for points in plan_tuning(study, task=task, scale=scale) for point in points for t in point]
    untuned = {name: arm for name, arm in study.arms.items() if not candidates(arm)}
    return tuning + plan_final(study, untuned, task=task, scale=scale, seeds=seeds)


def plain_study(study: Study, trials: Sequence[Trial], chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a store keeps of a study, so that a page can be made of the store alone.

    Args:
        study: The study.
        trials: The trials of its run.
        chosen: The tuned settings by arm.
    """
    return {
        "protocol": PROTOCOL,
        "claim": study.claim,
        "limits": study.limits,
        "covers": study.covers,
        "version": study.version,
        "seeds": len({t.seed for t in trials if t.stage == "final"}),
        "arms": {
            name: {"description": arm.describe(), "hyperparameters": study.hyperparameters(arm)}
            for name, arm in study.arms.items()
        },
        "chosen": {name: dict(overrides) for name, overrides in chosen.items()},
        "expectations": [expectation.to_plain() for expectation in study.expects],
        "sources": dict(study.sources or {}),
        "trials": [{"key": t.key, "arm": t.arm, "seed": t.seed, "stage": t.stage} for t in trials],
    }
