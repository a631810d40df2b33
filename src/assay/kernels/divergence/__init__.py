"""Kullback-Leibler and generalised Jensen-Shannon divergence that keep nothing but their two inputs."""

from __future__ import annotations

from assay.kernels.divergence.functional import jsd, kl_div
from assay.kernels.divergence.reference import jsd_reference, kl_div_reference

__all__ = ["jsd", "jsd_reference", "kl_div", "kl_div_reference"]
