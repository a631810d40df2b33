"""Compile Triton kernels for a GPU that is not there, and read what they would take of it.

The convention: a `triton_kernel.py` in an operation's folder defines

    def ahead_of_time() -> list[Compilation]: ...

with one `Compilation` per kernel and typical setting: at least bfloat16 at a common size, and the largest block that
the kernel is ever launched with. `kernel_modules()` finds these files, `compile_for(...)` compiles one entry with
Triton's own compiler and assembler, on any machine; tests assert that this works, and `bench/triton_sm90.py` writes
registers, shared memory and spills of all of them. Nothing of this says how fast they are.

    def ahead_of_time() -> list[Compilation]:
        types = {"x": "*bf16", "y": "*bf16", "columns": "i32", "eps": "fp32"}
        return [Compilation("rms_norm_forward bf16 4096", forward_kernel, types, {"BLOCK": 4096}, warps=8)]

Triton must not be in its interpreter's mode: kernels that were decorated with TRITON_INTERPRET=1 cannot be compiled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Compilation", "Compiled", "compile_for", "kernel_modules"]


@dataclass(frozen=True)
class Compilation:
    """A Triton kernel in one setting.

    Args:
        name: What a reader of a table sees: kernel, dtype, size.
        kernel: The function that `triton.jit` made.
        types: Triton's type of every argument that is not a constant: "*fp32", "*bf16", "*fp16", "*i64", "i32", "fp32".
        constants: The value of every `tl.constexpr` argument.
        warps: `num_warps` of the launch.
        stages: `num_stages` of the launch.
        divisible: Integer arguments that are multiples of 16 in this setting, as the launcher would see; pointers
            always are.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3
    divisible: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes: registers and spilled bytes per thread, bytes of shared memory per program, atomics."""

    name: str
    registers: int
    shared_bytes: int
    spilled_bytes: int
    warps: int
    atomics: int


def kernel_modules() -> list[str]:
    """Return the dotted names of all modules with Triton kernels, sorted."""
    folder = Path(__file__).parent
    return sorted(f"assay.kernels.{path.parent.name}.{path.stem}" for path in folder.glob("*/triton_kernel.py"))


def compile_for(compilation: Compilation, capability: int = 90) -> Compiled:
    """Compile a kernel for an NVIDIA GPU of a compute capability (90: H100), which need not be present.

    Raises:
        ImportError: Without Triton.
        RuntimeError: If Triton's assembler refuses the kernel.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = compilation.kernel.arg_names
    aligned = [n for n, t in compilation.types.items() if t.startswith("*") or n in compilation.divisible]
    source = ASTSource(
        compilation.kernel,
        {name: compilation.types.get(name, "constexpr") for name in names},
        dict(compilation.constants),
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": compilation.warps, "num_stages": compilation.stages}
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = done.asm["ptx"]
    log = _assembler_log(ptx, capability)
    return Compiled(
        name=compilation.name,
        registers=_number(r"Used (\d+) registers", log),
        shared_bytes=int(done.metadata.shared),
        spilled_bytes=_number(r"(\d+) bytes spill stores", log) + _number(r"(\d+) bytes spill loads", log),
        warps=int(done.metadata.num_warps),
        atomics=len(re.findall(r"^\s*(?:@\S+\s+)?(?:atom|red)\.", ptx, re.MULTILINE)),
    )


def _assembler_log(ptx: str, capability: int) -> str:
    """Return what the assembler that comes with Triton says about a kernel."""
    from triton.backends.nvidia.compiler import get_ptxas

    architecture = re.search(r"\.target (\w+)", ptx)
    assert architecture is not None, "Triton always names the target"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture[1]}", str(path), "-o", f"{path}.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ptxas: {done.stderr.strip()[-500:]}")
    return done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0
