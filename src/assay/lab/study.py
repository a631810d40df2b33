"""A study: one claim as arms and expectations, with the source of every hyper-parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assay.errors import InvalidInput
from assay.lab.arms import Arm

if TYPE_CHECKING:
    from assay.lab.expectations import Expectation

__all__ = ["Study"]

SCALES = ("smoke", "desk", "paper")


@dataclass(frozen=True)
class Study:
    """One paper's claim, ready to be put to the test.

    Args:
        claim: The claim in one or two sentences.
        arms: What is compared, by name.
        expects: Decidable statements on the records; the claim holds if all of them do. Empty for a run without a
            claim, such as `assay train`.
        sources: Where each hyper-parameter comes from, by the name it has in an arm's description ("optimizer", or
            "optimizer.lr" for one argument, or "arm: optimizer" for one arm): a section of the paper, "tuned", or
            "scaled down because ...".
        limits: What this scale cannot show.
        seeds: How many seeds a run takes unless told otherwise; a verdict needs at least 6.
        tune_seeds: How many seeds each point of a tuning grid gets.
        version: Raise it when a change to the code must not reuse stored trials.
        time_limit: Seconds after which a trial ends with the status "timeout".
        threads: Threads of one trial; jobs times threads never exceed the cores.
        covers: What randomness the seeds, and so the intervals, cover.
    """

    claim: str
    arms: Mapping[str, Arm]
    expects: Sequence[Expectation] = ()
    sources: Mapping[str, str] | None = None
    limits: str = ""
    seeds: int = 6
    tune_seeds: int = 1
    version: int = 1
    time_limit: float | None = None
    threads: int = 1
    covers: str = "the split of the data, the initial weights and the order of the mini-batches"

    def __post_init__(self) -> None:
        if not self.arms:
            raise InvalidInput("a study needs at least one arm")
        for expectation in self.expects:
            expectation.check(self.arms)
        for value, name in [
            (self.seeds, "seeds"),
            (self.tune_seeds, "tune_seeds"),
            (self.threads, "threads"),
        ]:
            if value < 1:
                raise InvalidInput(f"{name} must be at least 1, not {value}")

    def hyperparameters(self, arm: Arm) -> list[dict[str, Any]]:
        """Return an arm's hyper-parameters as rows of name, value and source ("" where none is given)."""
        name = next((n for n, a in self.arms.items() if a == arm), "")
        return [
            {"name": key, "value": value, "source": self.source(name, key)}
            for key, value in arm.describe().items()
            if value not in (None, [], {}) and key != "function"
        ]

    def source(self, arm: str, hyperparameter: str) -> str:
        """Return where a hyper-parameter comes from; arguments' own sources are joined to it."""
        sources = dict(self.sources or {})
        own = sources.get(f"{arm}: {hyperparameter}", sources.get(hyperparameter, ""))
        parts = [
            f"{key.removeprefix(f'{arm}: ')}: {text}"
            for key, text in sources.items()
            if key.removeprefix(f"{arm}: ").startswith(f"{hyperparameter}.")
        ]
        return "; ".join(filter(None, [own, *parts]))

    def unsourced(self) -> list[str]:
        """Return the hyper-parameters, as "arm: name", whose source is missing."""
        return [
            f"{name}: {row['name']}"
            for name, arm in self.arms.items()
            for row in self.hyperparameters(arm)
            if not row["source"]
        ]
