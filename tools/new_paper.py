"""Scaffold a paper: a card, a study, a part, a failing test, a docs page and a news fragment.

Called by `make new PAPER=id SEAM=losses`. Files that exist are left alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

CARD = """id = "{paper}"
title = "TITLE"
seam = "{seam}"
authors = ["AUTHOR"]
year = 2026
venue = "VENUE"
reference = "arXiv:0000.00000"
summary = "ONE LINE IN YOUR OWN WORDS"
status = "planned"
parts = []
probes = []
equations = []
"""

STUDY = '''"""{paper}: CLAIM IN ONE SENTENCE."""

from __future__ import annotations

from assay.lab import Experiment, Study, greater

__all__ = ["study"]


def study(scale: str) -> Study:
    """Return the study at a scale.

    Args:
        scale: "smoke", "desk" or "paper".

    Returns:
        The study.
    """
    epochs = {{"smoke": 1, "desk": 20, "paper": 200}}[scale]
    data = "digits" if scale == "smoke" else "mnist"
    base = Experiment(
        data=data, model="mlp", optimizer="adam(lr=1e-3)", epochs=epochs, tune={{"optimizer.lr": (1e-3, 3e-3)}}
    )
    return Study(
        claim="CLAIM",
        arms={{"baseline": base, "method": base.but(loss="{name}")}},
        expects=[greater("test_accuracy", "method", "baseline")],
        sources={{}},
        limits="WHAT THIS SCALE CANNOT SHOW",
        seeds=2 if scale == "smoke" else 6,
    )
'''

PART = '''"""ONE SENTENCE: what it does.

PAPER, equation or algorithm number. Shapes: B samples, K classes. Cost: TIME and MEMORY.
"""

from __future__ import annotations

__all__: list[str] = []
'''

TEST = '''"""Tests of assay.{seam}.{module} against something independent of it."""

from __future__ import annotations

import importlib


def test_{module}_has_public_names():
    """The part must exist and say what is public; replace this by tests against a closed form or brute force."""
    assert importlib.import_module("assay.{seam}.{module}").__all__, "write the part and list its public names"


def test_{module}_agrees_with_the_paper():
    """Write the paper's equations the slow way in float64 here and compare."""
    raise AssertionError("no independent test yet")
'''

PAGE = "# {paper}\n\nWhat it is, how to use its parts (snippets that run), and what the evidence says.\n"


def files(paper: str, seam: str) -> dict[Path, str]:
    """Return the files of a new paper and their first contents."""
    module = paper.replace("-", "_")
    folder = ROOT / "src/assay/papers" / module
    fill = {"paper": paper, "seam": seam, "module": module, "name": paper}
    return {
        folder / "card.toml": CARD.format(**fill),
        folder / "__init__.py": f'"""{paper}."""\n',
        folder / "study.py": STUDY.format(**fill),
        ROOT / f"src/assay/{seam}/{module}.py": PART,
        ROOT / f"tests/{seam}/test_{module}.py": TEST.format(**fill),
        ROOT / f"docs/papers/{paper}.md": PAGE.format(**fill),
        ROOT / f"changelog.d/{paper}.md": f"Added the paper `{paper}`.\n",
    }


def seams() -> list[str]:
    """Return the seams that a part can be in."""
    folders = (path.parent for path in (ROOT / "src/assay").glob("*/__init__.py"))
    return sorted(f.name for f in folders if "lazy_exports" in (f / "__init__.py").read_text() and f.name != "lab")


def main(paper: str, seam: str) -> int:
    """Write the files that do not exist yet and say what to do next."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", paper):
        print(f"PAPER must be kebab case, such as collapse-mse; got {paper!r}", file=sys.stderr)
        return 2
    if seam not in seams():
        print(f"SEAM must be one of {', '.join(seams())}; got {seam!r}", file=sys.stderr)
        return 2
    for path, text in files(paper, seam).items():
        if path.exists():
            print(f"kept     {path.relative_to(ROOT)}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"created  {path.relative_to(ROOT)}")
    print(f"\nNow: fill in the card and write the part until `make check PAPER={paper}` passes; then set")
    print("status = 'implemented' and stability = 'experimental'.")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
