"""What the gallery shows: an entry per paper, its state, its numbers for the filters, and where its pages are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.errors import InvalidInput
from assay.lab.report import links, strips

__all__: list[str] = []

STATES = {
    "holds": "Holds",
    "fails": "Fails",
    "inconclusive": "Inconclusive",
    "not-run": "Not yet run",
    "planned": "Planned",
}
SCALES = ("paper", "desk", "smoke")
GLYPHS = 5
# What templates ask for; a field that a card or a result lacks reads as None there.
CARD_FIELDS = ("title", "seam", "summary", "reference", "stability", "parts", "probes", "equations", "comparison")
RESULT_FIELDS = ("arms", "claim", "command", "limits", "scale", "seeds")

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A paper, or a training run, with its results from the largest scale to the smallest.

    Args:
        card: The paper's card; for a run or a study without one, what its result says.
        results: Its results, at most one a scale.
        files: The page of each result, in the same order; one page if there is no result.
    """

    card: Mapping[str, Any]
    results: Sequence[Result]
    files: Sequence[str]

    def pages(self) -> list[tuple[str, Result | None]]:
        """Return (page, result) for every page of this entry."""
        results: Sequence[Result | None] = self.results or [None]
        return list(zip(self.files, results, strict=True))

    @property
    def result(self) -> Result | None:
        """The result that the gallery shows."""
        return self.results[0] if self.results else None

    @property
    def kind(self) -> str:
        """Return "train" for a run without a claim, else "study"."""
        return "train" if self.result is not None and self.result.get("kind") == "train" else "study"

    @property
    def state(self) -> str:
        """One of STATES: the verdict at the largest scale, or why there is none."""
        return state(self.card, self.result)

    @property
    def authors(self) -> str:
        """The authors as one line."""
        authors = self.card.get("authors") or ""
        return authors if isinstance(authors, str) else ", ".join(map(str, authors))

    @property
    def byline(self) -> str:
        """Where and when the paper appeared."""
        return " ".join(str(self.card[key]) for key in ("venue", "year") if self.card.get(key))

    @property
    def reference_url(self) -> str | None:
        """Where the reference points."""
        return links.reference_url(str(self.card.get("reference") or ""))

    @property
    def code_url(self) -> str | None:
        """Where the authors' own code is."""
        return links.repository_url(str(self.card.get("official_code") or ""))

    @property
    def search_text(self) -> str:
        """What the gallery's text filter looks into."""
        names = [*(self.card.get("parts") or ()), *(self.card.get("probes") or ())]
        words = [
            *(self.card.get(k) for k in ("id", "title", "seam", "summary", "venue", "year")),
            self.authors,
            *names,
        ]
        return " ".join(str(word) for word in words if word).lower()

    @property
    def glyphs(self) -> list[strips.Drawing]:
        """A tiny drawing of each expectation's outcome."""
        outcomes = ((self.result or {}).get("verdict") or {}).get("outcomes") or []
        plain = (self.result or {}).get("expectations") or []
        pairs = zip(outcomes, [*plain, *({} for _ in outcomes)], strict=False)
        drawings = [strips.drawing(outcome, expectation) for outcome, expectation in pairs]
        return [drawing for drawing in drawings if drawing is not None][:GLYPHS]


@dataclass(frozen=True)
class Gallery:
    """The index page: groups of entries, and how many papers each filter lets through."""

    groups: list[tuple[str, str, list[Entry]]]
    comparisons: list[Entry]
    runs: list[Entry]
    total: int
    states: list[tuple[str, str, int]]
    seams: list[tuple[str, int]]

    @property
    def tested(self) -> int:
        """How many papers have a verdict."""
        return sum(n for key, _, n in self.states if key in ("holds", "fails", "inconclusive"))


def state(card: Mapping[str, Any], result: Result | None) -> str:
    """Return which of STATES a paper is in, given its result at some scale.

    Raises:
        InvalidInput: If the verdict's status is not "holds", "fails" or "inconclusive".
    """
    if result is not None and (verdict := result.get("verdict")):
        return checked(verdict)
    return "not-run" if result is not None or card.get("status") == "implemented" else "planned"


def checked(verdict: Mapping[str, Any]) -> str:
    """Return the status of a verdict or of one outcome.

    Raises:
        InvalidInput: If it is none.
    """
    status = str(verdict.get("status"))
    if status not in ("holds", "fails", "inconclusive"):
        raise InvalidInput(f"a verdict is holds, fails or inconclusive, not {status!r}; record the evidence again")
    return status


def entries(cards: Sequence[Mapping[str, Any]], results: Sequence[Result]) -> tuple[list[Entry], list[Entry]]:
    """Match results to cards.

    Returns:
        The papers' entries, and those of training runs.

    Raises:
        InvalidInput: If a card has no id.
    """
    by_id: dict[str, Mapping[str, Any]] = {}
    for card in cards:
        if not card.get("id"):
            raise InvalidInput(f"a card needs an id; got one with only {', '.join(sorted(card)) or 'nothing'}")
        by_id[str(card["id"])] = {**dict.fromkeys(CARD_FIELDS), **card}
    studies = _by_name(result for result in results if result.get("kind") != "train")
    runs = _by_name(result for result in results if result.get("kind") == "train")
    for name, scales in studies.items():
        by_id.setdefault(name, _card_of(name, next(iter(scales.values()))))
    papers = _entries(by_id, studies, "studies")
    return papers, _entries({n: _card_of(n, next(iter(s.values()))) for n, s in runs.items()}, runs, "runs")


def gallery(papers: Sequence[Entry], runs: Sequence[Entry]) -> Gallery:
    """Group the papers: those with a verdict, those that wait for one, those not yet built.

    Comparisons across papers stand apart and do not count as papers.
    """
    comparisons = [entry for entry in papers if entry.card.get("comparison")]
    papers = [entry for entry in papers if not entry.card.get("comparison")]
    by_state = {key: [e for e in papers if e.state == key] for key in STATES}
    groups = [
        ("tested", "Put to the test", by_state["holds"] + by_state["fails"] + by_state["inconclusive"]),
        ("waiting", "Implemented, not yet run", by_state["not-run"]),
        ("planned", "Planned", by_state["planned"]),
    ]
    return Gallery(
        groups=[(key, title, sorted(group, key=_place)) for key, title, group in groups if group],
        comparisons=comparisons,
        runs=list(runs),
        total=len(papers),
        states=[(key, title, len(by_state[key])) for key, title in STATES.items()],
        seams=sorted(Counter(str(e.card.get("seam") or "") for e in papers if e.card.get("seam")).items()),
    )


def _entries(
    cards: Mapping[str, Mapping[str, Any]], results: Mapping[str, Mapping[str, Result]], folder: str
) -> list[Entry]:
    wanted = {name: list(results.get(name, {}).values()) for name in cards}
    smaller = [_smaller(name, result) for name, found in wanted.items() for result in found[1:]]
    files = links.file_names([*cards, *smaller])

    def entry(name: str, found: Sequence[Result]) -> Entry:
        names = [name, *(_smaller(name, result) for result in found[1:])]
        return Entry(cards[name], found, [f"{folder}/{files[n]}.html" for n in names])

    return [entry(name, found) for name, found in wanted.items()]


def _smaller(name: str, result: Result) -> str:
    """Name the page of a result that is not the entry's first."""
    return f"{name}.{result.get('scale')}"


def _by_name(results: Iterable[Result]) -> dict[str, dict[str, Result]]:
    """Return results by name and scale, the largest scale first; of two alike the later one stays."""
    found: dict[str, dict[str, Result]] = {}
    for result in results:
        complete = {**dict.fromkeys(RESULT_FIELDS), **result}
        found.setdefault(str(result["paper"]), {})[str(result.get("scale"))] = complete
    rank = {scale: place for place, scale in enumerate(SCALES)}
    return {
        name: dict(sorted(scales.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))
        for name, scales in found.items()
    }


def _card_of(name: str, result: Result) -> Mapping[str, Any]:
    """Return what a card would say of a run, or of a study without a card."""
    known = {"id": name, "title": result.get("title"), "summary": result.get("claim"), "status": "implemented"}
    return {**dict.fromkeys(CARD_FIELDS), **known}


def _place(entry: Entry) -> tuple[str, str]:
    return str(entry.card.get("seam") or ""), str(entry.card.get("title") or entry.card["id"]).lower()
