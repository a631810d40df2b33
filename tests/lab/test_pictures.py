"""Pictures of a trial: refused where they are none, the same pixels in the store, in evidence and on the page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from assay.errors import InvalidInput
from assay.lab.evidence import load_evidence, load_summary, save_evidence
from assay.lab.pictures import LARGEST_PICTURES, data_uri, drawn, png, png_of_uri
from assay.lab.plan import Trial
from assay.lab.record import Record
from assay.lab.report import build_report
from assay.lab.results import find_study, result
from assay.lab.store import Store, StoredTrial, now


def noise(*shape: int, seed: int = 0) -> Any:
    """Return random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_another_decoder_reads_the_same_pixels(height, width, coloured, seed):
    """A file that only this writer understands, or rows and columns exchanged."""
    picture = noise(height, width, *([3] if coloured else []), seed=seed)
    read = (imread(io.BytesIO(png(picture)), format="png") * 255).round().astype(np.uint8)
    assert np.array_equal(read[..., :3] if coloured else read, picture)


@pytest.mark.parametrize(
    "picture,said",
    [
        (np.zeros((4, 4)), "float64"),
        (noise(4, 4, 4), r"\(4, 4, 4\)"),
        (noise(4), r"\(4,\)"),
        (noise(0, 4), r"\(0, 4\)"),
        ([[0, 1]], "list"),
        (noise(600, 600), "600 pictures|360000 bytes"),
    ],
)
def test_what_is_no_small_picture_is_refused(picture, said):
    """A float image would be written as noise, a large one would swell the package."""
    with pytest.raises(InvalidInput, match=said):
        Record({}, pictures={"p": picture})


def test_the_limit_counts_all_pictures_together():
    """Many small pictures would go around the limit."""
    half = noise(LARGEST_PICTURES // 2 // 256, 256)
    Record({}, pictures={"a": half, "b": half})
    with pytest.raises(InvalidInput, match="smaller or fewer"):
        Record({}, pictures={"a": half, "b": half, "c": noise(1, 1)})


def _stored(arm: str, seed: int, stage: str = "final") -> StoredTrial:
    record = Record({"m": 1.0}, arrays={"a": np.arange(3.0)}, pictures={"sky": noise(5, 7, 3, seed=seed)})
    key = f"{arm}-{seed}-{stage}"
    return StoredTrial(Trial(key, "p", arm, seed, "smoke", stage, {}), record, {}, now())


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """Return the result of a study with two arms, two seeds and a tuning trial, out of a store."""
    trials = [_stored("b arm", 1), _stored("b arm", 0), _stored("a/<arm>", 0), _stored("a/<arm>", 0, "tune")]
    planned = [{"key": s.trial.key, "arm": s.trial.arm, "seed": s.trial.seed, "stage": s.trial.stage} for s in trials]
    plan = {"trials": planned, "expectations": [], "arms": {}, "chosen": {}, "seeds": 2, "protocol": 1}
    with Store(tmp_path / "s.sqlite") as store:
        for each in trials:
            store.add(each)
        back = store.trials(["b arm-1-final"])["b arm-1-final"].record
        assert np.array_equal(back.pictures["sky"], noise(5, 7, 3, seed=1))
        assert np.array_equal(back.arrays["a"], np.arange(3.0)) and set(back.arrays) == {"a"}
        store.save_study("p", "smoke", plan | {"claim": "c", "limits": "l", "covers": "v"})
        return result(store, find_study(store, "p", "smoke"), title="t", command="c")


def test_the_first_seed_of_every_arm_is_shown(found):
    """The evidence would grow with the seeds, or show the picture of a tuning trial."""
    assert {arm: list(named) for arm, named in found["pictures"].items()} == {"b arm": ["sky"], "a/<arm>": ["sky"]}
    assert png_of_uri(found["pictures"]["b arm"]["sky"]) == png(noise(5, 7, 3, seed=0))


def test_evidence_keeps_pictures_as_files_and_drops_old_ones(found, tmp_path):
    """Pictures would be lost on the way to the page, or those of an older run stay in the package."""
    save_evidence(found, tmp_path)
    files = sorted((tmp_path / "pictures").iterdir())
    assert [file.name[:9] for file in files] == ["a-arm-sky", "b-arm-sky"]
    assert files[0].read_bytes() == png(noise(5, 7, 3, seed=0))
    assert load_evidence(tmp_path) == found
    assert load_summary(tmp_path)["pictures"]["b arm"]["sky"] == f"pictures/{files[1].name}"
    files[0].unlink()
    assert load_evidence(tmp_path)["pictures"]["a/<arm>"] == {}
    save_evidence({k: v for k, v in found.items() if k != "pictures"}, tmp_path)
    assert not list((tmp_path / "pictures").iterdir()) and "pictures" not in load_evidence(tmp_path)


def test_the_page_shows_them(found, tmp_path):
    """Pictures would need files beside the page, or an arm's name would end a tag."""
    build_report([], [found], tmp_path)
    page = next((tmp_path / "runs").glob("*.html")).read_text()
    assert found["pictures"]["b arm"]["sky"] in page and "<arm>" not in page and page.count("<img") == 2


@pytest.mark.parametrize("uri", ["javascript:alert(1)", 'data:image/png;base64,a"onerror', "data:image/svg+xml,<svg>"])
def test_an_address_that_is_no_picture_stays_off_the_page(found, tmp_path, uri):
    """A forged record could run a script in the reader's browser."""
    with pytest.raises(InvalidInput, match="expected a picture"):
        build_report([], [{**found, "pictures": {"a": {"b": uri}}}], tmp_path)
    assert png_of_uri(data_uri(b"xyz")) == b"xyz"


def test_a_figure_becomes_a_picture():
    """A probe's figure could not be kept with its trial."""
    figure = Figure(figsize=(2, 1))
    assert drawn(figure, 50).shape == (50, 100, 3) and figure.dpi != 50
    Record({}, pictures={"figure": drawn(figure)})
