"""Where files are found, and what happens when they are not."""

from __future__ import annotations

import hashlib
import io
import re
import urllib.request
from email.message import Message
from pathlib import Path

import pytest

import assay.data
from assay._exports import public_names
from assay.data import files
from assay.data._sources import SOURCES, DataFile, Source
from assay.errors import MissingData, UnknownName

CONTENT = b"forty-two" * 20_000


class _Response(io.BytesIO):
    headers = Message()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> DataFile:
    """A data set with one file whose publisher serves CONTENT."""
    file = DataFile("toy/data.bin", "https://example.org/data.bin", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(SOURCES, "toy", Source("toy", "", "", (file,), ((file.path,),)))
    return file


def _serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    """Answer every URL with the content; return the list of URLs asked for."""
    asked: list[str] = []

    def opener(url: str, timeout: float) -> _Response:
        asked.append(url)
        return _Response(content)

    monkeypatch.setattr(urllib.request, "urlopen", opener)
    return asked


def _put(root: Path, content: bytes) -> Path:
    path = root / "toy" / "data.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_given_folder_comes_before_the_cache(folders, toy, monkeypatch) -> None:
    """A stale download would win over the file that the user chose."""
    asked = _serve(monkeypatch, CONTENT)
    cached = _put(folders.cache, b"cached")
    assert files.obtain("toy", toy.path) == cached
    given = _put(folders.given, b"given")
    assert files.obtain("toy", toy.path) == given
    assert files.locate("toy") == {toy.path: given}
    assert asked == []


def test_download_goes_to_the_cache_once(folders, toy, monkeypatch) -> None:
    """ASSAY_DATA would be written to, or the file fetched for every trial."""
    asked = _serve(monkeypatch, CONTENT)
    assert not files.is_available("toy")
    path = files.obtain("toy", toy.path)
    assert path == folders.cache / toy.path and path.read_bytes() == CONTENT
    assert files.fetch("toy") == [path] and files.is_available("toy")
    assert asked == [toy.url]
    assert not folders.given.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["data.bin"]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"!", b""])
def test_wrong_checksum_keeps_nothing(folders, toy, monkeypatch, content: bytes) -> None:
    """A truncated or exchanged file would be trained on."""
    _serve(monkeypatch, content)
    with pytest.raises(MissingData, match="wrong checksum"):
        files.obtain("toy", toy.path)
    assert list((folders.cache / "toy").iterdir()) == []


def test_without_network_the_error_says_which_file_goes_where(folders, toy) -> None:
    """The user would see a traceback of urllib."""
    with pytest.raises(MissingData) as caught:
        files.obtain("toy", toy.path)
    message = str(caught.value)
    assert "no network" in message and "\n" not in message
    for expected in (toy.url, str(folders.given / toy.path), str(folders.cache / toy.path)):
        assert expected in message


def test_without_the_variable_the_error_mentions_it(folders, toy, monkeypatch) -> None:
    """A user who has the files would not learn how to say so."""
    monkeypatch.delenv("ASSAY_DATA")
    with pytest.raises(MissingData, match=r"set ASSAY_DATA to a folder that has toy/data\.bin"):
        files.obtain("toy", toy.path)


def test_interrupted_download_keeps_nothing(folders, toy, monkeypatch) -> None:
    """Half a file would be found next time."""

    class Breaks(_Response):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise ConnectionResetError("connection reset")
            return super().read(size)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Breaks(CONTENT))
    with pytest.raises(MissingData, match="connection reset"):
        files.obtain("toy", toy.path)
    assert list((folders.cache / "toy").iterdir()) == []


def test_unwritable_cache_is_one_clear_error(folders, toy, monkeypatch) -> None:
    """A read-only home would give a traceback."""
    _serve(monkeypatch, CONTENT)
    folders.cache.parent.mkdir(parents=True)
    folders.cache.write_text("a file where the folder should be")
    with pytest.raises(MissingData, match="download failed"):
        files.obtain("toy", toy.path)


def test_file_without_a_publisher_gives_instructions(folders, monkeypatch) -> None:
    """An invented URL would be tried."""
    file = DataFile("toy/own.npz")
    monkeypatch.setitem(SOURCES, "toy", Source("toy", "", "", (file,), ((file.path,),)))
    with pytest.raises(MissingData, match=r"own\.npz is not there and cannot be downloaded"):
        files.obtain("toy", file.path)
    assert files.fetch("toy") == []


def test_verify_refuses_another_file_on_disk(folders, toy) -> None:
    """A pickle that is not the publisher's would be opened."""
    _put(folders.given, b"something else")
    assert files.obtain("toy", toy.path).read_bytes() == b"something else"
    with pytest.raises(MissingData, match="not the publisher's file"):
        files.obtain("toy", toy.path, verify=True)


def test_unknown_name_lists_near_ones() -> None:
    """A typing error would be hard to see."""
    with pytest.raises(UnknownName, match="did you mean mnist"):
        files.locate("minst")
    assert files.locate("breast_cancer") == {}


@pytest.mark.parametrize("name", ["digits", "stdlib-text", "blobs"])
def test_data_that_ships_with_a_package_is_always_available(folders, name: str) -> None:
    """The demonstration would ask for a download."""
    assert files.is_available(name) and files.fetch(name) == []


def test_catalogue_says_where_each_data_set_is(folders, toy) -> None:
    """`assay data` would call a missing file ready, or not say what brings it."""
    rows = {row["name"]: row for row in files.catalogue()}
    assert rows["digits"]["state"] == "ready" and rows["digits"]["where"] == "ships with scikit-learn"
    assert rows["toy"]["state"] == "missing" and rows["toy"]["where"] == "`assay data toy` downloads it"
    path = _put(folders.cache, CONTENT)
    assert {row["name"]: row for row in files.catalogue()}["toy"]["where"] == str(path.parent)
    assert files.search_path() == [folders.given, folders.cache]


def test_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Downloads would land where nobody looks for a cache."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg" / "assay" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("sys.platform", "linux")
    assert files.cache_folder() == tmp_path / ".cache" / "assay" / "data"
    monkeypatch.setattr("sys.platform", "darwin")
    assert files.cache_folder() == tmp_path / "Library" / "Caches" / "assay" / "data"


def test_table_of_sources_is_well_formed() -> None:
    """A download without a checksum, or a data set without a loader, would slip in."""
    for name, source in SOURCES.items():
        assert source.name == name and callable(getattr(assay.data, name.replace("-", "_")))
        assert {path for paths in source.sufficient for path in paths} <= {file.path for file in source.files}
        for file in source.files:
            assert (file.url is None) == (file.sha256 is None)
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.url is None or file.url.startswith("https://")


def test_checksums_are_those_of_the_files_at_hand(real_data: Path) -> None:
    """A right file would be refused after its download."""
    checked = 0
    for name in ("tinyshakespeare", "cora", "citeseer"):
        for file in SOURCES[name].files:
            path = real_data / file.path
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256, file.path
                checked += 1
    assert checked


def test_no_loader_shares_its_module_name() -> None:
    """`from assay.data import mnist` would give the module instead of the function, from the second import on."""
    owners = public_names(str(Path(assay.data.__file__).parent))
    loaders = {name.replace("-", "_") for name in SOURCES}
    assert loaders <= set(owners) and not loaders & set(owners.values())
