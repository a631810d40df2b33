"""Conformance checks per seam, for Assay's own parts and for anybody's.

A seam's checks live in `assay.testing.<seam>`: `CASES` are tiny settings of Assay's own parts, `CHECKS` are what every
part of that seam must pass. A plug-in runs the same checks on its own factory::

    import assay.testing

    def test_my_loss():
        assay.testing.check("losses", lambda: MyLoss(temperature=2.0))
"""

from __future__ import annotations

from assay.testing._registry import SEAMS, cases, check, checks
from assay.testing.expected_failures import EXPECTED_FAILURES

__all__ = ["EXPECTED_FAILURES", "SEAMS", "cases", "check", "checks"]
