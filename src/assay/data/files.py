"""Where data files are looked up: `ASSAY_DATA` first, then the user's cache, then a download into the cache.

`ASSAY_DATA` is read-only for Assay; only the cache is written, atomically and after the checksum was right.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO

from assay.data._sources import SOURCES, DataFile, Source
from assay.errors import MissingData, UnknownName

__all__ = ["cache_folder", "catalogue", "fetch", "is_available", "locate", "search_path"]

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 16


def cache_folder() -> Path:
    """Return the folder that downloads go to; it need not exist yet.

    `XDG_CACHE_HOME/assay/data` if that variable is set; else the platform's usual place below the user's home.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "assay" / "data"


def search_path() -> list[Path]:
    """Return the folders that files are looked up in, first to last."""
    given = os.environ.get("ASSAY_DATA")
    return [Path(given).expanduser(), cache_folder()] if given else [cache_folder()]


def catalogue() -> list[dict[str, str]]:
    """Return one row per data set that Assay knows, as plain data.

    Returns:
        Rows with "name", "description", "origin", "state" ("ready" or "missing") and "where": the folder that its
        files lie in, the package that it ships with, or what brings it.
    """
    return [_row(source) for source in SOURCES.values()]


def _row(source: Source) -> dict[str, str]:
    ready = is_available(source.name)
    folders = sorted({str(path.parent) for path in locate(source.name).values() if path is not None})
    if not source.files:
        where = f"ships with {source.origin}" if source.origin != "synthetic" else "made on the fly"
    else:
        where = ", ".join(folders) if ready else f"`assay data {source.name}` downloads it"
    plain = {"name": source.name, "description": source.description, "origin": source.origin}
    return {**plain, "state": "ready" if ready else "missing", "where": where}


def locate(name: str) -> dict[str, Path | None]:
    """Return where each file of a data set lies now, None where it is missing.

    Args:
        name: A data set of `catalogue()`, in kebab case or with underscores.

    Raises:
        UnknownName: If there is no such data set; the message lists the nearest ones.
    """
    return {file.path: _find(file.path) for file in _source(name).files}


def is_available(name: str) -> bool:
    """Return whether a data set can be loaded without a download.

    Args:
        name: A data set of `catalogue()`.

    Raises:
        UnknownName: If there is no such data set.
    """
    found = locate(name)
    return any(all(found[path] is not None for path in paths) for paths in _source(name).sufficient)


def fetch(name: str) -> list[Path]:
    """Download the files of a data set that are missing and can be downloaded; leave the others alone.

    Args:
        name: A data set of `catalogue()`.

    Returns:
        Where the data set's files lie; empty if it ships with a package.

    Raises:
        UnknownName: If there is no such data set.
        MissingData: If a download failed or its checksum was wrong; the message says which file to put where.
    """
    found = {file.path: _find(file.path) for file in _source(name).files}
    wanted = [file for file in _source(name).files if found[file.path] is not None or file.url is not None]
    return [found[file.path] or _download(file) for file in wanted]


def obtain(name: str, path: str, *, verify: bool = False) -> Path:
    """Return one file of a data set, downloading it if it is nowhere.

    Args:
        name: A data set of `catalogue()`.
        path: The file's relative path.
        verify: Compare the checksum of a file found on disk too; needed where opening a file may run code.

    Raises:
        MissingData: If it is nowhere and could not be downloaded, or is not the publisher's file.
    """
    file = next(file for file in _source(name).files if file.path == path)
    found = _find(path)
    if found is None:
        return _download(file)
    if verify and hashlib.sha256(found.read_bytes()).hexdigest() != file.sha256:
        raise MissingData(f"{found} is not the publisher's file (wrong SHA-256); replace it by {file.url}")
    return found


def _source(name: str) -> Source:
    kebab = name.replace("_", "-").lower()
    if kebab not in SOURCES:
        near = difflib.get_close_matches(kebab, SOURCES, n=3, cutoff=0.4) or list(SOURCES)
        raise UnknownName(f"unknown data set {name!r}; did you mean {', '.join(near)}?")
    return SOURCES[kebab]


def _find(path: str) -> Path | None:
    candidates = (root / path for root in search_path())
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _missing(file: DataFile, reason: str) -> MissingData:
    """Say in one line what is missing, why, and where to put it."""
    origin = f" from {file.url}" if file.url else ""
    places = " or ".join(str(root / file.path) for root in search_path())
    hint = "" if os.environ.get("ASSAY_DATA") else f", or set ASSAY_DATA to a folder that has {file.path}"
    return MissingData(f"{file.path} {reason}; put the file{origin} at {places}{hint}")


def _download(file: DataFile) -> Path:
    """Stream a file into the cache: a temporary neighbour first, renamed once its checksum is right."""
    if file.url is None or file.sha256 is None:
        raise _missing(file, "is not there and cannot be downloaded")
    target = cache_folder() / file.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".download-", delete=False) as temporary:
            partial = Path(temporary.name)
            try:
                digest = _stream(file.url, temporary)
                temporary.close()
                if digest != file.sha256:
                    raise _missing(
                        file, f"was downloaded with a wrong checksum ({digest[:12]}..., not {file.sha256[:12]}...)"
                    )
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
    except MissingData:
        raise
    except (OSError, HTTPException) as error:
        raise _missing(file, f"is not there and its download failed ({getattr(error, 'reason', error)})") from error
    return target


def _stream(url: str, target: IO[bytes]) -> str:
    """Copy a URL to an open file under a progress bar on standard error; return the SHA-256 of what came."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    digest = hashlib.sha256()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        size = response.headers.get("Content-Length")
        task = progress.add_task(url.rsplit("/", 1)[-1], total=int(size) if size else None)
        for chunk in _chunks(response):
            target.write(chunk)
            digest.update(chunk)
            progress.advance(task, len(chunk))
    return digest.hexdigest()


def _chunks(response: IO[bytes]) -> Iterator[bytes]:
    while chunk := response.read(_CHUNK_BYTES):
        yield chunk
