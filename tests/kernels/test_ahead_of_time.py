from __future__ import annotations

import importlib
import importlib.util

import pytest

from assay.kernels._ahead_of_time import compile_for, kernel_modules

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

SETTINGS = 2  # of each operation; bench/triton_sm90.py compiles all of them


@pytest.mark.parametrize("module", kernel_modules(), ids=lambda name: name.split(".")[-2])
def test_kernels_compile_for_an_h100(module):
    """A kernel that the interpreter runs would be refused by the compiler, or need more than a GPU has."""
    settings = importlib.import_module(module).ahead_of_time()
    assert len({setting.name for setting in settings}) == len(settings) > 0
    for setting in settings[:SETTINGS]:
        compiled = compile_for(setting)
        assert 0 < compiled.registers <= 255
        assert compiled.registers * 32 * compiled.warps <= 65536
        assert compiled.shared_bytes <= 227 * 1024


def test_what_the_compiler_reports_is_read():
    """Spills or atomics would go unnoticed: the numbers must move with what causes them."""
    from assay.kernels.layer_normalisation.triton_kernel import ahead_of_time

    narrow, wide = (
        next(s for s in ahead_of_time() if s.name == f"layer_norm backward {n}") for n in ("bf16 1024", "bf16 16384")
    )
    assert compile_for(narrow).spilled_bytes == 0 < compile_for(wide).spilled_bytes
    assert compile_for(narrow).shared_bytes > 0 == compile_for(narrow).atomics
