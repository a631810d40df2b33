import json
import math
import struct

import pytest

from assay.errors import InvalidInput
from assay.history import History


def filled():
    """A history with every kind of float."""
    history = History()
    history.record(2, {"b": 0.1 + 0.2, "a": math.nan, "a/layer": -0.0})
    history.record(0, {"b": math.inf, "a": 5e-324, "a/layer": -math.inf})
    return history


def test_saved_and_loaded_bit_for_bit(tmp_path):
    """A float, NaN or infinity comes back changed, steps lose their order, or JSON is not standard JSON."""
    path = tmp_path / "watch.json"
    filled().save(path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    before, after = filled().frame(), History.load(path).frame()
    assert [(r["step"], r["quantity"]) for r in before] == [(r["step"], r["quantity"]) for r in after]
    assert [struct.pack("d", r["value"]) for r in before] == [struct.pack("d", r["value"]) for r in after]
    assert [r["step"] for r in after] == [0, 0, 0, 2, 2, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_step_measured_again_replaces_the_old():
    """A restarted run has two values for one step."""
    history = filled()
    history.record(2, {"b": 7.0})
    assert [row for row in history.frame() if row["step"] == 2] == [{"step": 2, "quantity": "b", "value": 7.0}]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "assay-watch", "version": 2, "steps": []}', '{"format": "assay-watch", "version": 1}',
     '{"format": "assay-watch", "version": 1, "steps": [{"step": 0, "values": {"a": "many"}}]}',
     '{"format": "other", "version": 1, "steps": []}'],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path, text):
    """A truncated, foreign or newer file loads as something, or fails with a traceback of json."""
    path = tmp_path / "watch.json"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        History.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    """A full disk destroys the history that was there."""
    path = tmp_path / "watch.json"
    filled().save(path)
    before = path.read_text()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        History().save(path)
    assert path.read_text() == before


def test_plot_shows_what_was_measured():
    """A panel, a line or a point is missing, or pyplot keeps a reference to every figure."""
    import matplotlib.pyplot as plt

    history = History()
    for step in range(4):
        history.record(step, {"nc1": 10.0**-step, "cosine": 0.1 * step, "cosine/a": 0.2, "bad": math.nan})
    figure = history.plot()
    lines = {line.get_gid(): line for axes in figure.axes for line in axes.lines}
    assert [axes.get_title() for axes in figure.axes] == ["nc1", "cosine", "bad"]
    assert set(lines) == {"nc1/", "cosine/", "cosine/a", "bad/"}
    assert list(lines["nc1/"].get_xdata()) == [0, 1, 2, 3] and lines["nc1/"].get_ydata()[3] == pytest.approx(1e-3)
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    figure.canvas.draw()
    assert not plt.get_fignums()
    History().plot().canvas.draw()
