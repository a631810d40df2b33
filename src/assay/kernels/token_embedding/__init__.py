"""Embedding whose weight gradient is summed in float32, in the same order on every run."""

from __future__ import annotations

from assay.kernels.token_embedding.functional import Embedding, embedding
from assay.kernels.token_embedding.reference import embedding_reference

__all__ = ["Embedding", "embedding", "embedding_reference"]
