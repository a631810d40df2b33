"""`assay report`."""

from __future__ import annotations


def test_the_report_shows_shipped_evidence_and_fresh_runs(assay, tmp_path):
    """Without a store the report stands on shipped evidence; a fresh run of a study takes its place."""
    assert assay("report").code == 0
    index = tmp_path / "report" / "index.html"
    assert index.exists() and "grokking-edge" in index.read_text()
    assay("run", "grokking-edge", "--scale", "smoke", "--seeds", "1", "--jobs", "1")
    assert assay("report", "--out", "again").code == 0
    pages = (tmp_path / "again" / "studies").glob("grokking-edge*.html")
    assert any("--scale smoke --seeds 1" in page.read_text() for page in pages)
