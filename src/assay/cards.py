"""A paper's card: plain data in `papers/<folder>/card.toml`, read without importing torch.

The card is the only link between a paper and what implements it: it names the parts and probes, which equations they
implement, and whether there is a study. Everything that lists papers (`assay list`, the report, the docs) reads cards.
A comparison across papers is no paper, but has a card and a study like one, in `comparisons/<folder>/`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from assay.errors import CardError, InvalidInput, UnknownName

__all__ = ["SEAMS", "Card", "load_card", "load_cards", "load_comparisons", "load_verdict", "study_module"]

SEAMS = (
    "compress", "data", "decode", "domains", "graph", "infinite", "kernels", "losses", "models", "nn", "optim",
    "probes", "rules", "scale",
)  # fmt: skip
SUMMARY_LENGTH = 160
_PAPERS = Path(__file__).parent / "papers"
_COMPARISONS = Path(__file__).parent / "comparisons"
_STRING, _STRINGS, _INTEGER = "a string", "a list of strings", "an integer"
_REQUIRED = {
    "id": _STRING,
    "title": _STRING,
    "seam": _STRING,
    "authors": _STRINGS,
    "year": _INTEGER,
    "venue": _STRING,
    "reference": _STRING,
    "summary": _STRING,
    "status": _STRING,
    "parts": _STRINGS,
    "probes": _STRINGS,
    "equations": _STRINGS,
}
_OPTIONAL = {"stability": _STRING, "official_code": _STRING}
_DOTTED = r"assay(\.[A-Za-z_]\w*){2,}"
_PATTERNS = {
    "id": (re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*"), "kebab case, such as collapse-mse"),
    "seam": (re.compile("|".join(SEAMS)), f"one of {', '.join(SEAMS)}"),
    "status": (re.compile("implemented|planned"), "implemented or planned"),
    "stability": (re.compile("experimental|stable"), "experimental or stable"),
    "summary": (re.compile(rf"[^\n]{{1,{SUMMARY_LENGTH}}}"), f"one line of at most {SUMMARY_LENGTH} characters"),
    "official_code": (re.compile(r"[\w.-]+/[\w.-]+"), "owner/name"),
    "parts": (re.compile(_DOTTED), "dotted names, such as assay.losses.FocalLoss"),
    "probes": (re.compile(_DOTTED), "dotted names, such as assay.probes.NeuralCollapse"),
    "equations": (
        re.compile(rf"{_DOTTED}: .+"),
        "a dotted name and what it implements, such as assay.losses.X: eq. (4)",
    ),
}


@dataclass(frozen=True)
class Card:
    """One paper.

    Args:
        id: Its name in Assay, kebab case.
        title: The paper's title.
        seam: Where its main part belongs, one of `SEAMS`.
        authors: Names in the paper's order.
        year: Of the publication.
        venue: Conference or journal, or "preprint".
        reference: Where to find it, such as "arXiv:2210.02192".
        summary: One line of at most 160 characters: the method or finding and its claim.
        status: "implemented" or "planned".
        parts: Dotted names of what it changes in training or inference.
        probes: Dotted names of what it measures.
        equations: Which equation or algorithm each of them implements, as "assay.losses.FocalLoss: eq. (4)".
        stability: "experimental" or "stable"; None if planned.
        official_code: The authors' repository as "owner/name", if there is one.
        folder: The paper's folder.
    """

    id: str
    title: str
    seam: str
    authors: tuple[str, ...]
    year: int
    venue: str
    reference: str
    summary: str
    status: str
    parts: tuple[str, ...]
    probes: tuple[str, ...]
    equations: tuple[str, ...]
    stability: str | None
    official_code: str | None
    folder: Path

    @property
    def comparison(self) -> bool:
        """Whether it stands for a comparison across papers instead of one paper."""
        return self.folder.parent == _COMPARISONS


def load_cards(folder: Path = _PAPERS) -> list[Card]:
    """Return the cards of all papers, sorted by id.

    Args:
        folder: The folder of the papers' folders.

    Raises:
        CardError: If a card is malformed; the message names the file and the field.

    Example:
        >>> [card.id for card in load_cards()][:2]
        ['adadagrad', 'apg']
    """
    return sorted((_read(path) for path in folder.glob("*/card.toml")), key=lambda card: card.id)


def load_comparisons() -> list[Card]:
    """Return the cards of all comparisons across papers, sorted by id.

    Raises:
        CardError: If a card is malformed; the message names the file and the field.
    """
    return load_cards(_COMPARISONS)


def load_card(paper: str, folder: Path | None = None) -> Card:
    """Return the card of one paper or comparison.

    Args:
        paper: Its id.
        folder: The folder of the papers' folders; by default those of Assay's papers and comparisons.

    Raises:
        UnknownName: If there is no such paper; the message lists the nearest ones.
        CardError: If its card is malformed.

    Example:
        >>> load_card("grokking-edge").seam
        'losses'
    """
    folders = (_PAPERS, _COMPARISONS) if folder is None else (folder,)
    paths = {path.parent.name.replace("_", "-"): path for each in folders for path in each.glob("*/card.toml")}
    if paper not in paths:
        near = difflib.get_close_matches(paper.lower().replace("_", "-"), sorted(paths), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`assay list` shows all papers"
        raise UnknownName(f"unknown paper {paper!r}; {hint}")
    return _read(paths[paper])


def study_module(card: Card) -> ModuleType:
    """Import the module that defines the paper's `study(scale)`.

    Raises:
        InvalidInput: If the paper is planned.
        CardError: If the card says implemented but there is no study.
    """
    if card.status != "implemented":
        raise InvalidInput(f"{card.id!r} is planned, it has no study yet")
    if not (card.folder / "study.py").is_file():
        raise CardError(f"{card.folder / 'card.toml'}: status is implemented, but there is no study.py")
    module = importlib.import_module(f"assay.{card.folder.parent.name}.{card.folder.name}.study")
    if not callable(getattr(module, "study", None)):
        raise CardError(f"{card.folder / 'study.py'} defines no function study(scale)")
    return module


def load_verdict(card: Card) -> dict[str, Any]:
    """Return the verdict in the paper's stored evidence.

    Args:
        card: The paper's card.

    Returns:
        The verdict's plain data ("status", "outcomes", ...) with "scale" and "seeds" of the run; empty without
        evidence.

    Raises:
        CardError: If the evidence cannot be read.
    """
    path = card.folder / "evidence.json"
    if not path.exists():
        return {}
    try:
        evidence = json.loads(path.read_text(encoding="utf-8"))
        return {**evidence["verdict"], "scale": evidence["scale"], "seeds": evidence["seeds"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CardError(
            f"{path} is no evidence: {error}; record it again with `assay run {card.id} --record`"
        ) from error


def _read(path: Path) -> Card:
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"{path}: cannot read the card ({error})") from error
    _check(plain, path)
    lists = {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
    missing = dict.fromkeys(_OPTIONAL)
    return Card(**{**missing, **plain, **lists, "folder": path.parent})


def _check(plain: Mapping[str, Any], path: Path) -> None:
    """Refuse unknown, missing, ill-typed and contradicting fields."""
    kinds = {**_REQUIRED, **_OPTIONAL}
    for name in plain:
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            raise CardError(f"{path}: unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for name in _REQUIRED:
        if name not in plain:
            raise CardError(f"{path}: field {name!r} is missing; expected {_REQUIRED[name]}")
    for name, value in plain.items():
        _check_value(name, value, kinds[name], path)
    if plain["id"].replace("-", "_") != path.parent.name:
        raise CardError(f"{path}: field 'id' is {plain['id']!r}, but the folder is {path.parent.name!r}")
    if ("stability" in plain) != (plain["status"] == "implemented"):
        raise CardError(f"{path}: field 'stability' belongs to implemented papers, and to all of them")


def _check_value(name: str, value: object, kind: str, path: Path) -> None:
    if not _is(value, kind):
        raise CardError(f"{path}: field {name!r} must be {kind}, not {value!r}")
    if name in _PATTERNS:
        pattern, expected = _PATTERNS[name]
        for text in value if isinstance(value, list) else [str(value)]:
            if not pattern.fullmatch(text):
                raise CardError(f"{path}: field {name!r} must be {expected}, not {text!r}")


def _is(value: object, kind: str) -> bool:
    if kind == _STRINGS:
        return isinstance(value, list) and all(_is(text, _STRING) for text in value)
    if kind == _INTEGER:
        return type(value) is int
    return isinstance(value, str) and bool(value.strip())
