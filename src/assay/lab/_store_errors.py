"""What SQLite and the operating system say about a store, as one line that says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.errors import StoreError

BUSY_SECONDS = 60.0
ADVICE = {
    "SQLITE_NOTADB": "is not an Assay store; it was left as it is. Choose another file (--store or ASSAY_STORE)",
    "SQLITE_CORRUPT": "is damaged; it was left as it is. Restore a copy, or move it away and run again "
    "(`sqlite3 FILE .recover` can save trials from it)",
    "SQLITE_FULL": "cannot grow: the disk is full. Free some space and run again; the stored trials are kept",
    "SQLITE_IOERR": "cannot be read or written: input/output error; is the disk full or gone? "
    "Run again when it is back; the stored trials are kept",
    "SQLITE_READONLY": "cannot be written: the file or its folder is read-only. "
    "Change that, or choose another file (--store or ASSAY_STORE)",
    "SQLITE_CANTOPEN": "cannot be opened: is it a folder, or are you not allowed to read or write there? "
    "Choose another file (--store or ASSAY_STORE)",
    "SQLITE_BUSY": f"was locked by another program for {BUSY_SECONDS:.0f} seconds. Try again when that has finished",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of the body into a `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "")
        advice = next((text for prefix, text in ADVICE.items() if code.startswith(prefix)), None)
        raise StoreError(f"store {path} {advice or 'failed'} ({error})") from error
    except OSError as error:
        raise StoreError(
            f"store {path} cannot be made ({error.strerror or error}). Choose another file (--store or ASSAY_STORE)"
        ) from error
