"""The report: a gallery of all papers and a page per study, static HTML made from cards and results alone."""

from __future__ import annotations

from assay.lab.report.pages import build_report

__all__ = ["build_report"]
