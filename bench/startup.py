"""Start-up: `assay list --json`, `import assay` and, for scale, `import torch`, each in fresh processes, in one run."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from _measure import write_results

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import assay": [sys.executable, "-c", "import assay"],
    "assay list --json": [sys.executable, "-m", "assay.cli.main", "list", "--json"],
    "assay --help": [sys.executable, "-m", "assay.cli.main", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    """Measure and write bench/results/startup.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = 3 if parser.parse_args().quick else 10
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    rows = [
        {"command": name, "seconds_min": min(values), "seconds_median": sorted(values)[rounds // 2]}
        for name, values in seconds.items()
    ]
    write_results("startup", rows=rows, summary={}, settings={"rounds": rounds})


if __name__ == "__main__":
    main()
