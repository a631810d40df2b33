"""Thin callbacks that put `assay.Watch` into other people's training loops."""
