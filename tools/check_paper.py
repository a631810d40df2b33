"""Check only what one paper touches: its parts' lint, types and tests, its card, its study at smoke scale.

Called by `make check PAPER=id`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from assay.cards import Card, load_card
from assay.errors import AssayError

ROOT = Path(__file__).parents[1]


def sources(card: Card) -> list[Path]:
    """Return the files that the card's parts and probes live in, and the paper's folder."""
    import importlib
    import inspect

    found = {card.folder}
    for dotted in (*card.parts, *card.probes):
        package, _, name = dotted.rpartition(".")
        found.add(Path(inspect.getfile(getattr(importlib.import_module(package), name))))
    own = ROOT / "src/assay" / card.seam / f"{card.folder.name}.py"
    return sorted(found | ({own} if own.exists() else set()))


def tests(card: Card) -> list[str]:
    """Return the pytest arguments that cover those files."""
    mirrored = [ROOT / "tests" / p.relative_to(ROOT / "src/assay").parent / f"test_{p.stem}.py" for p in sources(card)]
    existing = [str(path) for path in mirrored if path.exists()]
    return [*existing, "tests/test_cards.py", "tests/papers/test_studies.py", "-k", f"not test_studies or {card.id}"]


def main(paper: str) -> int:
    """Run the checks and return the first exit code that is not zero."""
    try:
        card = load_card(paper)
        files = [str(path) for path in sources(card)]
    except (AssayError, AttributeError, ImportError) as error:
        print(f"check: {error}", file=sys.stderr)
        return 2
    python = sys.executable
    commands = [
        [python, "-m", "ruff", "check", *files],
        [python, "-m", "mypy", *files],
        [python, "-m", "pytest", "-q", *tests(card)],
    ]
    if card.status == "implemented":
        commands.append([python, "-m", "assay.cli.main", "run", paper, "--scale", "smoke"])
    for command in commands:
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
