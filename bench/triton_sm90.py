"""What every Triton kernel takes of an H100, found by compiling it ahead of time: no GPU is needed, nothing is timed.

Registers and spilled bytes are per thread, shared memory is per program. "programs" is how many of them a
multiprocessor holds at once as far as its 65536 registers, 227 KiB of shared memory and 2048 threads go.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from _measure import write_results
from assay.kernels._ahead_of_time import Compiled, compile_for, kernel_modules

REGISTERS, SHARED_BYTES, THREADS = 65536, 227 * 1024, 2048


def resident_programs(compiled: Compiled) -> int:
    """Return how many programs fit on a multiprocessor of an H100."""
    threads = 32 * compiled.warps
    registers = -(-compiled.registers // 8) * 8  # they are handed out by eights
    limits = [THREADS // threads, REGISTERS // (registers * threads)]
    if compiled.shared_bytes:
        limits.append(SHARED_BYTES // compiled.shared_bytes)
    return min(limits)


def rows_of(module: str) -> list[dict[str, Any]]:
    """Compile a module's kernels and return a row for each."""
    rows = []
    for compilation in importlib.import_module(module).ahead_of_time():
        compiled = compile_for(compilation)
        row: dict[str, Any] = {"operation": module.split(".")[-2], "kernel": compiled.name, "warps": compiled.warps}
        row |= {"registers": compiled.registers, "shared_bytes": compiled.shared_bytes}
        row |= {"spilled_bytes": compiled.spilled_bytes, "atomics": compiled.atomics}
        rows.append({**row, "programs": resident_programs(compiled)})
        print(f"# {row}", flush=True)
    return rows


def main() -> None:
    """Compile and write bench/results/triton_sm90.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="folders of operations, such as rms_normalisation")
    arguments = parser.parse_args()
    modules = [m for m in kernel_modules() if not arguments.only or m.split(".")[-2] in arguments.only]
    rows = [row for module in modules for row in rows_of(module)]
    summary = {
        "kernels in settings": len(rows),
        "with spills": sum(row["spilled_bytes"] > 0 for row in rows),
        "with atomics": sum(row["atomics"] > 0 for row in rows),
        "timed on a GPU": "no",
    }
    write_results("triton_sm90", rows=rows, summary=summary, settings={"target": "sm_90", "operations": modules})


if __name__ == "__main__":
    main()
