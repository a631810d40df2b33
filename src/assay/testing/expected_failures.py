"""The one table of checks that a part of ours is known not to pass, each with its reason; the docs render it."""

from __future__ import annotations

__all__ = ["EXPECTED_FAILURES"]

EXPECTED_FAILURES: dict[tuple[str, str, str], str] = {
    # (seam, case, check): reason
}
