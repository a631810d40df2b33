"""Errors that a user can act on: one line that says what is wrong, what was expected, what to do.

The command line prints the message of an :class:`AssayError` and exits with code 2; anything else is a bug and shows
its traceback.
"""

from __future__ import annotations

__all__ = [
    "AssayError",
    "CardError",
    "InvalidInput",
    "MissingData",
    "MissingExtra",
    "StoreError",
    "UnknownName",
]


class AssayError(Exception):
    """Base of all errors that tell a user what to do."""


class UnknownName(AssayError, ValueError):
    """A name that no seam, no fallback and no plug-in knows; the message lists the nearest ones."""


class InvalidInput(AssayError, ValueError):
    """Input that cannot be used: a wrong shape, a label out of range, a budget below zero."""


class CardError(AssayError, ValueError):
    """A paper's card that is malformed or points to something that does not exist."""


class MissingExtra(AssayError, ImportError):
    """An optional dependency that is not installed; the message names the extra."""


class MissingData(AssayError, FileNotFoundError):
    """A data set that is neither on disk nor to be had; the message says where to put which file."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StoreError(AssayError):
    """A store that cannot be read or written: corrupted, read-only, full or of a newer version."""
