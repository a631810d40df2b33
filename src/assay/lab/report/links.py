"""File names and outside links made from records: safe whatever a record says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

__all__: list[str] = []

_ARXIV = re.compile(r"(?:arxiv[:\s]\s*)(\d{4}\.\d{4,5}(?:v\d+)?)", re.IGNORECASE)
_DOI = re.compile(r"(?:doi[:\s]\s*)(10\.\d{4,9}/[\w.()/:;-]+)", re.IGNORECASE)
_URL = re.compile(r"https://[\w.-]+(?:/[\w./%#?=&~+-]*)?", re.IGNORECASE)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
LONGEST_NAME = 80


def file_names(ids: Iterable[str]) -> dict[str, str]:
    """Map ids to file names without ending: plain ones keep their id, others are made safe and stay distinct."""
    names: dict[str, str] = {}
    for identifier in ids:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", identifier).strip(".-")[:LONGEST_NAME]
        # Windows and macOS take Focal and focal for one file, so a second one is told apart by its hash.
        taken = {other.lower() for other in names.values()}
        if not name or name != identifier or name.lower() in taken:
            name = f"{name or 'page'}-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}"
        names[identifier] = name
    return names


def reference_url(reference: str) -> str | None:
    """Return where a reference points (arXiv, DOI or an https address), or None where that is not known."""
    if match := _ARXIV.fullmatch(reference.strip()):
        return f"https://arxiv.org/abs/{match[1]}"
    if match := _DOI.fullmatch(reference.strip()):
        return f"https://doi.org/{match[1]}"
    return reference.strip() if _URL.fullmatch(reference.strip()) else None


def repository_url(repository: str) -> str | None:
    """Return the address of "owner/name" on GitHub, or None if it is no such name."""
    return f"https://github.com/{repository}" if _REPOSITORY.fullmatch(repository) else None
