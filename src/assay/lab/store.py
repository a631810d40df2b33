"""The store: one SQLite file of finished trials and of the studies that they belong to.

A worker writes its own record as soon as its trial is done, in one transaction, so a killed run loses only the trials
that were under way. The first record of a key stays (`INSERT OR IGNORE`): a trial that a forgotten worker finishes
later changes nothing. Arrays and pictures are npz without pickles, everything else is JSON. Every commit reaches the
disk (`synchronous=FULL`), and nothing ever overwrites a file that is not a sound store of this version.
The file has to be on a local disk: SQLite's write-ahead log does not work over a network file system.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from assay.errors import InvalidInput, StoreError
from assay.lab._store_errors import ADVICE, BUSY_SECONDS, explained
from assay.lab.plan import Trial
from assay.lab.record import Record

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Store", "StoredStudy", "StoredTrial", "default_store"]

SCHEMA_VERSION = 1
SMALLEST_PAGE = 512
ARRAY, PICTURE = "=", "#"
COLUMNS = "key, task, arm, seed, scale, stage, description, status, record, arrays, environment, created"
TABLES = """
CREATE TABLE store (id TEXT NOT NULL);
CREATE TABLE trials (
    key TEXT PRIMARY KEY, task TEXT NOT NULL, arm TEXT NOT NULL, seed INTEGER NOT NULL, scale TEXT NOT NULL,
    stage TEXT NOT NULL, description TEXT NOT NULL, status TEXT NOT NULL, record TEXT NOT NULL, arrays BLOB NOT NULL,
    environment TEXT NOT NULL, created TEXT NOT NULL, digest TEXT NOT NULL
);
CREATE TABLE studies (
    id TEXT NOT NULL, scale TEXT NOT NULL, plan TEXT NOT NULL, verdict TEXT, updated TEXT NOT NULL,
    PRIMARY KEY (id, scale)
);
"""


def default_store() -> Path:
    """Return the store that is used unless told otherwise: `ASSAY_STORE`, or a file in the user's cache."""
    chosen = os.environ.get("ASSAY_STORE")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "assay" / "store.sqlite"


@dataclass(frozen=True)
class StoredTrial:
    """A finished trial.

    Args:
        trial: The trial; its `call` is None.
        record: What it gave.
        environment: Where it ran.
        created: When it was stored (ISO 8601, UTC).
    """

    trial: Trial
    record: Record
    environment: Mapping[str, Any]
    created: str


@dataclass(frozen=True)
class StoredStudy:
    """A study that was run at one scale.

    Args:
        id: Usually the paper's id.
        scale: "smoke", "desk" or "paper".
        plan: What `plain_study` gives, the keys of its trials included.
        verdict: The verdict as plain data; None if it was not judged since.
        updated: When it was stored (ISO 8601, UTC).
    """

    id: str
    scale: str
    plan: Mapping[str, Any]
    verdict: Mapping[str, Any] | None
    updated: str


class Store:
    """An open store; use it as a context manager.

    Args:
        path: The file; it and its folder are made if they do not exist.
        create: False to raise instead where there is no file.
        check: Look for damage in the whole file first (about 0.1 s per 100 MB); workers don't.

    Raises:
        StoreError: If the file is damaged, no store, of a newer version, or cannot be read and written.
    """

    def __init__(self, path: Path | str, *, create: bool = True, check: bool = True) -> None:
        self.path = Path(path)
        with explained(self.path):
            self._prepare(create)
            mode = "rwc" if create else "rw"
            self._connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            )
            try:
                self._open(check)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, create: bool) -> None:
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        elif not self.path.exists():
            raise StoreError(f"store {self.path} does not exist; a run makes it")
        log = self.path.with_name(f"{self.path.name}-wal")
        size, logged = (p.stat().st_size if p.is_file() else 0 for p in (self.path, log))
        # SQLite would take the file for a new one and throw the log away.
        if logged and not size:
            raise StoreError(
                f"store {self.path} is empty or missing, but its log {log.name} holds data; nothing was changed. "
                "Restore the file, or move the log away"
            )
        # SQLite would read zeros; with a log, its pages are whole there.
        if size % SMALLEST_PAGE and not logged and _is_database(self.path):
            raise self._damaged("its last page is cut off")

    def _damaged(self, detail: str) -> StoreError:
        return StoreError(f"store {self.path} {ADVICE['SQLITE_CORRUPT']} ({detail})")

    def _open(self, check: bool) -> None:
        self._require_version()
        if check:
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise self._damaged(" ".join(found.split()))
        self._connection.execute("PRAGMA synchronous=FULL")
        if self._version() == 0:
            self._create()
        self.id: str = self._connection.execute("SELECT id FROM store").fetchone()[0]

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _require_version(self) -> None:
        """Refuse another program's database and a newer Assay's, before anything is written."""
        # One snapshot: between two reads another process may finish making the store.
        self._connection.execute("BEGIN")
        try:
            version = self._version()
            tables = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        if version == 0 and tables:
            raise StoreError(f"store {self.path} {ADVICE['SQLITE_NOTADB']}")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"store {self.path} has version {version}, this Assay knows versions up to {SCHEMA_VERSION}; it was "
                "left as it is. Update Assay, or choose another file (--store or ASSAY_STORE)"
            )

    def _create(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have been quicker.
            if self._version() == 0:
                for statement in filter(str.strip, TABLES.split(";")):
                    self._connection.execute(statement)
                self._connection.execute("INSERT INTO store VALUES (?)", (uuid.uuid4().hex,))
                self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with explained(self.path):
            self._connection.close()

    def _query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with explained(self.path):
            return self._connection.execute(statement, values).fetchall()

    def count(self) -> int:
        """Return how many trials are stored."""
        return int(self._query("SELECT count(*) FROM trials")[0][0])

    def keys(self, among: Iterable[str]) -> set[str]:
        """Return those of the given keys whose trial is stored."""
        statement = "SELECT key FROM trials WHERE key IN (SELECT value FROM json_each(?))"
        return {key for (key,) in self._query(statement, json.dumps(list(among)))}

    def keys_after(self, row: int) -> tuple[int, list[str]]:
        """Return the number of the last row, and the keys stored after the given row (0 for all)."""
        rows = self._query("SELECT rowid, key FROM trials WHERE rowid > ? ORDER BY rowid", row)
        return (rows[-1][0] if rows else row), [key for _, key in rows]

    def add(self, stored: StoredTrial) -> bool:
        """Store a finished trial, whole or not at all.

        Returns:
            False if a trial with this key is there already; that one stays.

        Raises:
            InvalidInput: If the record holds something that is neither a number nor an array of plain values.
            StoreError: If it cannot be written; the trials stored before are kept.
        """
        trial, record = stored.trial, stored.record
        try:
            plain, arrays = json.dumps(record.to_plain()), _pack(record.arrays, record.pictures)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the record of {trial} cannot be stored: {error}") from error
        row = (
            *(trial.key, trial.task, trial.arm, trial.seed, trial.scale, trial.stage, json.dumps(trial.description)),
            *(record.status, plain, arrays, json.dumps(stored.environment), stored.created),
        )
        statement = f"INSERT OR IGNORE INTO trials VALUES ({', '.join('?' * (len(row) + 1))})"
        with explained(self.path):
            return self._connection.execute(statement, (*row, _digest(row))).rowcount == 1

    def trials(self, keys: Iterable[str]) -> dict[str, StoredTrial]:
        """Return the stored ones of the given trials, by key.

        Raises:
            StoreError: If a trial is not what was stored.
        """
        statement = f"SELECT {COLUMNS}, digest FROM trials WHERE key IN (SELECT value FROM json_each(?))"
        return {row[0]: self._decode(row[:-1], row[-1]) for row in self._query(statement, json.dumps(list(keys)))}

    def _decode(self, row: tuple[Any, ...], digest: str) -> StoredTrial:
        # SQLite notices damage to its own structures only, not to what it holds.
        if _digest(row) != digest:
            raise self._damaged(f"trial {row[0]}")
        key, task, arm, seed, scale, stage, description, _, plain, arrays, environment, created = row
        trial = Trial(key, task, arm, seed, scale, stage, json.loads(description))
        record = Record.from_plain(json.loads(plain), *_unpack(arrays))
        return StoredTrial(trial, record, json.loads(environment), created)

    def save_study(self, id: str, scale: str, plan: Mapping[str, Any]) -> None:
        """Store a study's plan in place of an older one; a verdict on another plan is dropped."""
        with explained(self.path):
            self._connection.execute(
                "INSERT INTO studies VALUES (?, ?, ?, NULL, ?) ON CONFLICT DO UPDATE SET updated = excluded.updated, "
                "verdict = CASE WHEN plan = excluded.plan THEN verdict END, plan = excluded.plan",
                (id, scale, json.dumps(plan), now()),
            )

    def save_verdict(self, id: str, scale: str, verdict: Mapping[str, Any]) -> None:
        """Store the verdict (plain data) on a study whose plan is stored.

        Raises:
            StoreError: If there is no such study, or it cannot be written.
        """
        with explained(self.path):
            cursor = self._connection.execute(
                "UPDATE studies SET verdict = ?, updated = ? WHERE id = ? AND scale = ?",
                (json.dumps(verdict), now(), id, scale),
            )
        if cursor.rowcount == 0:
            raise StoreError(f"store {self.path} has no study {id!r} at {scale} scale; run it first")

    def studies(self) -> list[StoredStudy]:
        """Return all studies, the latest first."""
        rows = self._query("SELECT id, scale, plan, verdict, updated FROM studies ORDER BY updated DESC, id, scale")
        return [
            StoredStudy(id, scale, json.loads(plan), json.loads(verdict) if verdict else None, updated)
            for id, scale, plan, verdict, updated in rows
        ]


def now() -> str:
    """Return the time of day (ISO 8601, UTC)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _digest(row: tuple[Any, ...]) -> str:
    digest = hashlib.sha256()
    for value in row:
        data = value if isinstance(value, bytes) else str(value).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _pack(arrays: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays and pictures as npz without pickles; nothing for none."""
    if not arrays and not pictures:
        return b""
    import numpy as np

    plain = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; store numbers, booleans or text")
    buffer = io.BytesIO()
    # A mark before each name tells the kinds apart, and `savez` has a parameter of its own called `file`.
    save: Callable[..., None] = np.savez_compressed
    marked = {ARRAY + name: array for name, array in plain.items()} | {PICTURE + n: p for n, p in pictures.items()}
    save(buffer, **marked)
    return buffer.getvalue()


def _unpack(packed: bytes) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the arrays and the pictures."""
    if not packed:
        return {}, {}
    import numpy as np

    with np.load(io.BytesIO(packed), allow_pickle=False) as loaded:
        kinds = [{n[1:]: loaded[n] for n in loaded.files if n.startswith(mark)} for mark in (ARRAY, PICTURE)]
    return kinds[0], kinds[1]
