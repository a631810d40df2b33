"""The probe of knowledge accumulation in the setting of `assay.testing.probes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.knowledge_accumulation import KnowledgeAccumulation

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {"knowledge-accumulation": KnowledgeAccumulation}
