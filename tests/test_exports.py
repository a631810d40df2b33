"""Lazy exports: what a seam offers, read without importing it."""

from __future__ import annotations

import importlib

import pytest

from assay._exports import lazy_exports, public_names

SEAMS = ("data", "kernels", "lab", "losses", "models", "optim", "probes", "rules")


@pytest.mark.parametrize("seam", SEAMS)
def test_every_public_name_is_what_its_module_defines(seam):
    """`from assay.losses import FocalLoss` must give the class, whatever was imported before."""
    package = importlib.import_module(f"assay.{seam}")
    for name, module in public_names(package.__path__[0]).items():
        assert getattr(package, name) is getattr(importlib.import_module(f"assay.{seam}.{module}"), name)
        assert getattr(package, name) is getattr(package, name)
    assert dir(package) == sorted(public_names(package.__path__[0]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.py": "__all__ = ['x']", "b.py": "__all__ = ['x']"}, "exported by 'a' too"),
        ({"fit.py": "__all__ = ['fit']"}, "would hide"),
    ],
)
def test_names_that_would_be_lost_are_refused(tmp_path, files, message):
    """Two owners of one name, or a name hidden by its own module, must be an error and not a surprise."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ImportError, match=message):
        lazy_exports("demo", str(tmp_path))


def test_an_unknown_name_is_an_attribute_error():
    """Typing errors must look like those of any module."""
    with pytest.raises(AttributeError, match="FokalLoss"):
        importlib.import_module("assay.losses").FokalLoss  # noqa: B018
