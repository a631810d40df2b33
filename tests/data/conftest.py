"""Folders of data for tests: an empty pair of ASSAY_DATA and cache, and the real files where they are."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest


class Folders(NamedTuple):
    given: Path
    cache: Path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Empty folders that ASSAY_DATA and the cache point to, on a machine without network."""
    given, cache = tmp_path / "given", tmp_path / "cache" / "assay" / "data"
    monkeypatch.setenv("ASSAY_DATA", str(given))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def no_network(*_: object, **__: object) -> NoReturn:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return Folders(given, cache)


@pytest.fixture
def real_data() -> Path:
    """The folder with the publishers' files."""
    given = os.environ.get("ASSAY_DATA")
    if not given or not (Path(given) / "mnist").is_dir():
        pytest.skip("needs the publishers' files: set ASSAY_DATA to a folder that has them")
    return Path(given)
