"""Evidence on disk: a study's verdict in `evidence.json`, its trials in `trials.json`, pictures in `pictures/`.

A *result* is the plain data of a finished study: everything in `evidence.json` plus "trials". Both files are written
whole or not at all. JSON knows no NaN and no infinity, so both become null; series are thinned and rounded for size,
final metrics are kept exactly, so that a verdict can be judged again from the stored trials. Reads need no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.errors import StoreError
from assay.lab.pictures import data_uri, png_of_uri
from assay.lab.plan import PROTOCOL

__all__ = ["load_evidence", "load_summary", "save_evidence"]

SUMMARY = "evidence.json"
TRIALS = "trials.json"
PICTURES = "pictures"
MAX_POINTS = 200
SERIES_DIGITS = 6


def save_evidence(result: Mapping[str, Any], folder: Path | str) -> None:
    """Write a result as `evidence.json`, `trials.json` and a PNG file per picture.

    Args:
        result: A result: the fields of `evidence.json` and "trials", a list of plain records.
        folder: Where to write; made if it does not exist.

    Raises:
        StoreError: If the files cannot be written; what was there before is then still there.
    """
    folder = Path(folder)
    summary = {"protocol": PROTOCOL, **{key: value for key, value in result.items() if key != "trials"}}
    if result.get(PICTURES):
        summary[PICTURES] = _write_pictures(result[PICTURES], folder)
    lines = ",\n".join(_dump(_small(trial), indent=None) for trial in result.get("trials", ()))
    # The summary goes last: a folder with a summary is complete.
    _write(folder / TRIALS, (f"[\n{lines}\n]\n" if lines else "[]\n").encode())
    _write(folder / SUMMARY, (_dump(_finite(summary), indent=1) + "\n").encode())
    kept = {file for names in summary.get(PICTURES, {}).values() for file in names.values()}
    for stale in (folder / PICTURES).glob("*.png"):
        if f"{PICTURES}/{stale.name}" not in kept:
            stale.unlink(missing_ok=True)


def load_evidence(folder: Path | str) -> dict[str, Any] | None:
    """Read a result back.

    Args:
        folder: The folder that `save_evidence` wrote.

    Returns:
        The result, with "trials" empty where `trials.json` is not shipped and without pictures that are not; None if
        there is no evidence.

    Raises:
        StoreError: If a file is no JSON of the expected shape, or of a newer protocol.
    """
    summary = load_summary(folder)
    if summary is None:
        return None
    path = Path(folder) / TRIALS
    trials = _read(path, list) if path.exists() else []
    pictures = {PICTURES: _read_pictures(summary[PICTURES], Path(folder))} if PICTURES in summary else {}
    return {**summary, **pictures, "trials": trials}


def load_summary(folder: Path | str) -> dict[str, Any] | None:
    """Read only `evidence.json`: the verdict without its trials; pictures are the names of their files.

    Args:
        folder: The folder that `save_evidence` wrote.

    Returns:
        The summary; None if there is no evidence.

    Raises:
        StoreError: If the file is no JSON object, or of a newer protocol.
    """
    path = Path(folder) / SUMMARY
    if not path.exists():
        return None
    summary: dict[str, Any] = _read(path, dict)
    protocol = summary.get("protocol")
    if not isinstance(protocol, int):
        raise StoreError(f"{path} names no protocol version (found {protocol!r}); record the evidence again")
    if protocol > PROTOCOL:
        raise StoreError(f"{path} is of protocol {protocol}, this Assay reads up to {PROTOCOL}; update Assay")
    return summary


def _read(path: Path, kind: type) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); restore it or record the evidence again") from error
    if not isinstance(data, kind):
        raise StoreError(f"{path} holds a {type(data).__name__}, expected a {kind.__name__}; record it again")
    return data


def _write_pictures(pictures: Mapping[str, Mapping[str, str]], folder: Path) -> dict[str, dict[str, str]]:
    """Write each picture under a name made of arm, name and contents: no other evidence's file is overwritten."""
    names: dict[str, dict[str, str]] = {}
    for arm, of_arm in pictures.items():
        for name, uri in of_arm.items():
            image = png_of_uri(uri)
            words = re.sub(r"[^a-z0-9]+", "-", f"{arm}-{name}".lower()).strip("-")[:60]
            file = f"{PICTURES}/{words}-{hashlib.sha256(image).hexdigest()[:8]}.png"
            _write(folder / file, image)
            names.setdefault(arm, {})[name] = file
    return names


def _read_pictures(names: Mapping[str, Mapping[str, str]], folder: Path) -> dict[str, dict[str, str]]:
    found = {
        arm: {name: folder / PICTURES / Path(file).name for name, file in of_arm.items()}
        for arm, of_arm in names.items()
    }
    try:
        return {
            arm: {name: data_uri(path.read_bytes()) for name, path in of_arm.items() if path.exists()}
            for arm, of_arm in found.items()
        }
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be read ({error}); record the evidence again") from error


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then renamed over it."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for their owner only; evidence is for everybody.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written ({error.strerror or error})") from error


def _dump(data: Any, indent: int | None) -> str:
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)


def _finite(data: Any) -> Any:
    """Copy plain data with every NaN and infinity, number or its name, replaced by None."""
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def _small(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a trial with short series and without NaN."""
    small = dict(trial)
    for numbers in ("metrics", "resources"):
        small[numbers] = {name: _number(value) for name, value in trial.get(numbers, {}).items()}
    small["series"] = {name: _short(series) for name, series in trial.get("series", {}).items()}
    finite: dict[str, Any] = _finite(small)
    return finite


def _short(series: Mapping[str, Any]) -> dict[str, Any]:
    kept = _spread(len(series["steps"]))
    return {
        **series,
        "steps": [_rounded(series["steps"][i]) for i in kept],
        "values": [_rounded(series["values"][i]) for i in kept],
    }


def _spread(length: int) -> Sequence[int]:
    """Return at most MAX_POINTS indices, evenly spread, the first and the last among them."""
    if length <= MAX_POINTS:
        return range(length)
    return [round(i * (length - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]


def _rounded(value: Any) -> float | None:
    number = _number(value)
    return None if number is None else float(f"{number:.{SERIES_DIGITS}g}")


def _number(value: Any) -> float | None:
    """Return a record's number as JSON can hold it; records write NaN and infinity as strings."""
    if value is None or not math.isfinite(float(value)):
        return None
    return value if isinstance(value, int | float) else float(value)
