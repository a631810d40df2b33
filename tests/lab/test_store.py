from __future__ import annotations

import io
import math
import os
import sqlite3
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from lab_arms import outcome

from assay.errors import InvalidInput, StoreError
from assay.lab.plan import Trial
from assay.lab.record import Record, Series
from assay.lab.store import SCHEMA_VERSION, Store, StoredTrial, _unpack, default_store


def stored(key="k", value=1.0, **record):
    """Return a finished trial."""
    trial = Trial(key, "task", "arm", 0, "smoke", "final", {"lr": 0.1})
    return StoredTrial(trial, Record(metrics={"value": value}, **record), {"python": "3"}, "2026-01-01T00:00:00+00:00")


TRIALS = 60


def filled(path, trials=TRIALS):
    """Make a store of several pages, all of them in the main file."""
    with Store(path) as store:
        for i in range(trials):
            store.add(stored(f"k{i}", arrays={"a": np.random.default_rng(i).normal(size=100)}))
    return path


@pytest.fixture
def path(tmp_path):
    """Where a store can be made."""
    return tmp_path / "store.sqlite"


def test_a_record_comes_back_bit_for_bit(path):
    """A resumed run would give another verdict than an uninterrupted one."""
    series = {"loss": Series((0.5, 1.0), (math.nan, 0.1 + 0.2), "epoch")}
    arrays = {
        "file": np.array([np.nan, -0.0, np.inf, 5e-324]),
        "a/b": np.arange(6, dtype=np.int8).reshape(2, 3),
        "scalar": np.float32(1.5),
        "empty": np.empty((0, 3)),
        "text": np.array(["α", "b"]),
    }
    one = stored(value=-math.inf, series=series, arrays=arrays, resources={"seconds": 1e-300}, status="diverged")
    with Store(path) as store:
        assert store.add(one)
    with Store(path, create=False) as store:
        found = store.trials(["k", "unknown"])
    assert list(found) == ["k"]
    assert outcome(found["k"].record) == outcome(
        Record(one.record.metrics, series, {k: np.asarray(a) for k, a in arrays.items()}, {}, "diverged")
    )
    assert found["k"].record.resources == {"seconds": 1e-300}
    assert (found["k"].trial, found["k"].environment, found["k"].created) == (one.trial, one.environment, one.created)


def test_the_first_record_of_a_key_stays(path):
    """A forgotten worker would change or double a record that a verdict was made of."""
    with Store(path) as store:
        assert store.add(stored(value=1.0))
        assert not store.add(stored(value=2.0))
        assert store.count() == 1
        assert store.trials(["k"])["k"].record.metrics == {"value": 1.0}


def test_keys_finds_many_among_more_than_sqlite_takes_as_variables(path):
    """A large study would fail when it is planned."""
    with Store(path) as store:
        store.add(stored("a"))
        store.add(stored("b"))
        assert store.keys(["b", *map(str, range(300_000))]) == {"b"}
        row, keys = store.keys_after(0)
        assert (keys, store.keys_after(row)) == (["a", "b"], (row, []))


@pytest.mark.parametrize(
    "record",
    [
        Record(metrics={"a": "x"}),  # type: ignore[dict-item]
        Record(metrics={}, arrays={"a": np.array([{}])}),
        Record(metrics={"a": np.float32(1)}, resources={"b": 1j}),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_stored_without_pickle_is_refused(path, record):
    """A store could run code when it is read, or fail when it is read."""
    with Store(path) as store:
        with pytest.raises(InvalidInput, match="arm 'arm', seed 0"):
            store.add(StoredTrial(stored().trial, record, {}, ""))
        assert store.count() == 0


def test_reading_never_unpickles(path):
    """A store from somebody else could run code."""
    buffer = io.BytesIO()
    np.savez(buffer, **{"=a": np.array([Exception()], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        _unpack(buffer.getvalue())


@pytest.mark.parametrize("what", [b'"value": 1.25', b'"lr": 0.1', b"2026-01-01"])
def test_damage_inside_a_record_is_noticed(path, what):
    """SQLite does not notice it, and a verdict would be made of a changed number."""
    with Store(path) as store:
        store.add(stored(value=1.25))
    data = path.read_bytes()
    assert data.count(what) == 1
    path.write_bytes(data.replace(what, what[:-1] + b"7"))
    with Store(path) as store, pytest.raises(StoreError, match=r"is damaged.*trial k"):
        store.trials(["k"])


def test_many_writers_at_once_make_one_sound_store(path):
    """Two runs that start together would fail or overwrite each other."""

    def write(i):
        with Store(path) as store:
            for j in range(5):
                store.add(stored(f"{i}-{j}"))
                store.add(stored(f"shared-{j}"))
            return store.id

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(write, range(8)))
    with Store(path) as store:
        assert store.count() == 45
        assert {store.id} == ids


def test_studies_keep_the_verdict_until_the_plan_changes(path):
    """A page would show a verdict that was made of other trials."""
    with Store(path) as store:
        with pytest.raises(StoreError, match="no study 'p'"):
            store.save_verdict("p", "desk", {})
        store.save_study("p", "desk", {"claim": "c", "trials": [1]})
        store.save_study("p", "smoke", {"claim": "c"})
        store.save_verdict("p", "desk", {"status": "holds"})
        store.save_study("p", "desk", {"claim": "c", "trials": [1]})
    with Store(path) as store:
        found = {(s.id, s.scale): s for s in store.studies()}
        assert found["p", "desk"].verdict == {"status": "holds"}
        assert found["p", "smoke"].verdict is None
        store.save_study("p", "desk", {"claim": "c", "trials": [1, 2]})
        assert {s.scale: (s.plan.get("trials"), s.verdict) for s in store.studies()}["desk"] == ([1, 2], None)


def test_missing_folders_are_made_only_for_writing(tmp_path):
    """A first run would fail, or a report would leave empty stores behind."""
    path = tmp_path / "a b" / "c#?%" / "s.sqlite"
    with pytest.raises(StoreError, match="does not exist"):
        Store(path, create=False)
    assert not path.parent.exists()
    with Store(path):
        assert path.exists()


def refused(path, pattern):
    """Assert that the store is refused with one line, and that no byte of it changes."""
    before = path.read_bytes()
    with pytest.raises(StoreError, match=pattern) as error:
        Store(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_left_alone(path):
    """Somebody's file would be overwritten."""
    path.write_text("my notes, " * 1000)
    refused(path, "is not an Assay store")


def test_another_programs_database_is_left_alone(path):
    """Somebody's database would get our tables."""
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE bookmarks (url TEXT)")
    refused(path, "is not an Assay store")


def test_a_newer_version_is_left_alone(path):
    """An older Assay would write what a newer one cannot read."""
    filled(path, 1)
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    raw.close()
    refused(path, f"has version {SCHEMA_VERSION + 1}.*Update Assay")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_store_is_noticed_and_left_alone(path, share):
    """Trials would be missing without a word, or the rest be overwritten."""
    data = filled(path).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "is damaged")


@pytest.mark.parametrize("page", range(0, 60, 7))
def test_a_damaged_page_is_noticed_and_left_alone(path, page):
    """A verdict would be made of damaged records."""
    data = bytearray(filled(path).read_bytes())
    size = struct.unpack(">H", data[16:18])[0]
    start = page * size + (100 if page == 0 else 0)
    data[start : start + 64] = np.random.default_rng(page).bytes(64)
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"is damaged|is not an Assay store") as error, Store(path) as store:
        store.trials(f"k{i}" for i in range(TRIALS))
    assert "\n" not in str(error.value)
    assert path.read_bytes() == data


def test_an_emptied_store_keeps_its_log(path):
    """SQLite would take the file for a new one and throw away the finished trials in the log."""
    store = Store(path)
    store.add(stored())
    log = path.with_name("store.sqlite-wal")
    data = log.read_bytes()
    assert data
    store.close()
    path.write_bytes(b"")
    log.write_bytes(data)
    refused(path, "its log")
    path.unlink()
    with pytest.raises(StoreError, match="its log"):
        Store(path)
    assert log.read_bytes() == data


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    """The user would see SQLite's "unable to open database file"."""
    with pytest.raises(StoreError, match="is it a folder"):
        Store(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    """The user would see a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Store(tmp_path / "file" / "s.sqlite")


@pytest.fixture
def as_nobody():
    """Run as a user whom file permissions bind, which they do not bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def readonly():
    """A store with one trial, file and folder read-only for everybody."""
    with tempfile.TemporaryDirectory() as folder:
        path = filled(Path(folder) / "store.sqlite", 1)
        path.chmod(0o444)
        os.chmod(folder, 0o555)
        yield path
        os.chmod(folder, 0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are tested on POSIX")
def test_a_read_only_folder_is_one_clear_error(readonly, as_nobody):
    """The user would learn only after the first trial, or from a traceback."""
    before = readonly.read_bytes()
    with pytest.raises(StoreError, match=r"(cannot be opened|read-only).*--store"):
        Store(readonly)
    with pytest.raises(StoreError, match=r"(cannot be opened|read-only|cannot be made).*--store"):
        Store(readonly.with_name("new.sqlite"))
    with pytest.raises(StoreError, match=r"cannot be made.*--store"):
        Store(readonly.parent / "sub" / "new.sqlite")
    assert readonly.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are tested on POSIX")
def test_a_read_only_file_in_a_writable_folder_is_one_clear_error(tmp_path, readonly):
    """A trial would be computed and lost."""
    os.chmod(readonly.parent, 0o777)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(StoreError, match="read-only"), Store(readonly) as store:
            store.add(stored("new"))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_full_store_keeps_what_it_has(path):
    """A full disk would damage the store or show a traceback."""
    filled(path, 20)
    with Store(path) as store:
        pages = store._query("PRAGMA page_count")[0][0]
        store._query(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StoreError, match="the disk is full"):
            for i in range(100):
                store.add(stored(f"n{i}", arrays={"a": np.random.default_rng(i).normal(size=1000)}))
    with Store(path) as store:
        kept = store.count()
        assert kept >= 20
        assert len(store.trials([f"k{i}" for i in range(20)])) == 20


def test_a_full_disk_keeps_what_the_store_has(tmp_path):
    """As above, with the operating system's own error instead of SQLite's limit."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        path = folder / "store.sqlite"
        with pytest.raises(StoreError, match=r"disk (is )?full"), Store(path) as store:
            for i in range(100):
                store.add(stored(f"k{i}", arrays={"a": np.random.default_rng(i).normal(size=2000)}))
        with pytest.raises(StoreError, match=r"disk (is )?full"), Store(folder / "second.sqlite"):
            pass
        data = {p.name: p.read_bytes() for p in folder.iterdir()}
        room = tmp_path / "room"
        room.mkdir()
        for name, content in data.items():
            (room / name).write_bytes(content)
        with Store(room / "store.sqlite") as store:
            assert 1 <= store.count() == len(store.trials([f"k{i}" for i in range(store.count())])) < 100
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_default_store_is_where_the_user_says(monkeypatch):
    """Trials would go where the user does not look for them."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.delenv("ASSAY_STORE", raising=False)
    assert default_store() == Path("/cache/assay/store.sqlite")
    monkeypatch.setenv("ASSAY_STORE", "~/mine.sqlite")
    assert default_store() == Path.home() / "mine.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("ASSAY_STORE", "")
    assert default_store() == Path.home() / ".cache" / "assay" / "store.sqlite"
