from __future__ import annotations

import copy
import doctest
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import matplotlib
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.lab.quantities import reach
from assay.lab.report import build_report, figures, gallery, links, pages, strips, study, tables, text

GOLDEN = Path(__file__).parents[1] / "golden" / "report"
EXPECTED = sorted(path.relative_to(GOLDEN / "expected") for path in (GOLDEN / "expected").rglob("*.html"))
CARDS = json.loads((GOLDEN / "cards.json").read_text())
RESULTS = json.loads((GOLDEN / "results.json").read_text())
BY_PAPER = {found["paper"]: found for found in RESULTS}
HOSTILE = next(name for name in BY_PAPER if name.startswith("<script>"))
EVENTS = re.compile(r"on[a-z]+", re.IGNORECASE)


class Page(HTMLParser):
    """A page as a browser's parser sees it: its elements and the text that is shown."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that closes itself."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Check that elements close in the order in which they opened."""
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        """Note shown text."""
        if data.strip():
            self.words.append(data.strip())

    @property
    def shown(self) -> str:
        """All text."""
        return " ".join(self.words)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the report of all stored results."""
    return build_report(CARDS, RESULTS, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def parsed(report: Path) -> dict[Path, Page]:
    """Return every page of that report, parsed."""
    return {path: Page(path.read_text()) for path in sorted(report.rglob("*.html"))}


def without_curves(page: str) -> str:
    """Return a page without the insides of matplotlib's drawings, which differ between its versions."""
    return re.sub(r'(<svg class="plot"[^>]*>).*?(</svg>)', r"\1\2", page, flags=re.DOTALL)


def varied(arms: int, seeds: int) -> dict[str, Any]:
    """Return a result with so many arms and seeds, made from a stored one."""
    found = copy.deepcopy(BY_PAPER["even-ends"])
    trial, arm = found["trials"][0], found["arms"]["mse"]
    found |= {
        "arms": {f"arm {i}": arm for i in range(arms)},
        "seeds": seeds,
        "verdict": None,
        "expectations": [{"kind": "below", "quantity": "nc1"}],
    }
    found["trials"] = [{**trial, "arm": f"arm {i}", "seed": s} for i in range(arms) for s in range(seeds)]
    return found


# The report as a whole


@pytest.mark.parametrize("name", EXPECTED, ids=str)
def test_pages_are_as_expected(report: Path, name: Path) -> None:
    """A page would differ from the stored one: look at it, then run tests/golden/report/make.py if it is meant."""
    assert without_curves((report / name).read_text()) == (GOLDEN / "expected" / name).read_text()


def test_a_report_is_a_pure_function_of_its_input(report: Path, tmp_path: Path) -> None:
    """The same results would give other bytes a second time, or under a reader's own matplotlib settings."""
    cards, results = copy.deepcopy(CARDS), copy.deepcopy(RESULTS)
    with matplotlib.rc_context({"font.size": 31, "axes.grid": True, "svg.fonttype": "path"}):
        build_report(cards, results, tmp_path)
    first = {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    second = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert first == second
    assert (cards, results) == (CARDS, RESULTS)


def test_pages_are_well_formed(parsed: dict[Path, Page]) -> None:
    """An element would stay open, or an id would stand twice on a page."""
    for path, page in parsed.items():
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids)), path.name
        assert page.open == [], path.name


def test_markup_in_records_is_shown_as_text(parsed: dict[Path, Page]) -> None:
    """A study's name would run as a script, open an attribute or change the page's structure."""
    for path, page in parsed.items():
        for tag, attributes in page.elements:
            assert tag != "img", path.name
            if tag == "script":
                assert re.fullmatch(r"(\.\./)?assets/(gallery|study)\.js", attributes.get("src") or ""), path.name
            assert not any(EVENTS.fullmatch(name) for name in attributes), (path.name, attributes)
    (hostile,) = (page for path, page in parsed.items() if path.stem.startswith("script-alert-1"))
    places = ("h1", "claim", "limits", "recorded")
    assert hostile.shown.count(HOSTILE) >= 10 + len(places)
    titles = [attributes["title"] for _, attributes in hostile.elements if "title" in attributes]
    assert HOSTILE in titles


def test_every_link_leads_somewhere(parsed: dict[Path, Page]) -> None:
    """A link would be dead, run code or leave the folder; a page would need the network."""
    for path, page in parsed.items():
        for tag, attributes in page.elements:
            target = attributes.get("href") or attributes.get("src")
            if not target or target.startswith(("#", "data:image/svg+xml,")):
                continue
            if target.startswith("https://"):
                assert tag == "a"
                continue
            file = (path.parent / unquote(target.split("#")[0])).resolve()
            assert file.is_file() and path.parents[-1] in file.parents, (path.name, target)
    assert not any("url(" in style or "@import" in style for style in [(pages.TEMPLATES / "style.css").read_text()])


def test_missing_values_are_dashes(parsed: dict[Path, Page]) -> None:
    """A page would say nan, inf or None where a trial diverged or has no such value."""
    for path, page in parsed.items():
        assert not re.search(r"\b(nan|NaN|inf|None|(?<!the )null|undefined)\b", page.shown), path.name
    (open_question,) = (page for path, page in parsed.items() if path.stem == "open-question")
    assert "diverged (1 seed)" in open_question.shown


@pytest.mark.parametrize(("arms", "seeds"), [(1, 1), (1, 30), (2, 2), (12, 1), (12, 30)])
def test_any_number_of_arms_and_seeds(tmp_path: Path, arms: int, seeds: int) -> None:
    """A study with one arm or many seeds would break the page or lose points."""
    index = build_report([], [varied(arms, seeds)], tmp_path)
    page = Page((index.parent / "studies" / "even-ends.html").read_text())
    classes = [attributes.get("class") for _, attributes in page.elements]
    assert classes.count("point") == arms * seeds
    assert classes.count("pair") == (arms - 1) * seeds
    assert len([a for _, a in page.elements if "data-arm" in a]) == arms


def test_a_study_says_everything_that_it_must(parsed: dict[Path, Page]) -> None:
    """A page would lack its command, its limits, a source, a tuned value or its environment."""
    (page,) = (page for path, page in parsed.items() if path.stem == "early-riser")
    found = BY_PAPER["early-riser"]
    wanted = [
        found["claim"],
        found["command"],
        found["limits"],
        "Torch 2.13.0".lower(),
        "scaled down because MNIST takes hours",
    ]
    wanted += [outcome["text"] for outcome in found["verdict"]["outcomes"]]
    wanted += [outcome["reason"] for outcome in found["verdict"]["outcomes"]]
    for sentence in (*wanted, "The claim fails at desk scale. Of 3 expectations: 2 hold and 1 fail.", "85,002"):
        assert sentence in page.shown
    assert "Every arm had 2 tuning trials over its own grid." in page.shown


def test_a_training_run_has_no_verdict(parsed: dict[Path, Page]) -> None:
    """`assay train` would look like a claim that was put to the test."""
    (page,) = (page for path, page in parsed.items() if path.parent.name == "runs")
    assert not re.search(r"Holds|Fails|Inconclusive|Expectations", page.shown)
    assert "test accuracy" in page.shown and "95" in page.shown


def test_only_training_runs_make_an_index_too(tmp_path: Path) -> None:
    """`assay train` would show an empty gallery with filters."""
    page = Page(build_report([], [BY_PAPER["train-mlp"]], tmp_path).read_text())
    assert not any(tag in ("form", "script") for tag, _ in page.elements)
    assert any(attributes.get("href") == "runs/train-mlp.html" for _, attributes in page.elements)


def test_each_scale_has_its_page_and_the_largest_counts(tmp_path: Path) -> None:
    """A quick smoke run would hide the verdict of the real one."""
    smoke = {**copy.deepcopy(BY_PAPER["even-ends"]), "scale": "smoke"}
    smoke["verdict"]["status"] = "inconclusive"
    index = build_report(CARDS, [smoke, BY_PAPER["even-ends"]], tmp_path)
    entries = [attributes for _, attributes in Page(index.read_text()).elements if "data-entry" in attributes]
    assert [a["data-verdict"] for a in entries if "even ends" in (a["data-search"] or "")] == ["holds"]
    assert "Holds" in Page((tmp_path / "studies" / "even-ends.html").read_text()).shown
    assert "Inconclusive" in Page((tmp_path / "studies" / "even-ends.smoke.html").read_text()).shown


def test_the_gallery_counts_what_it_shows(parsed: dict[Path, Page]) -> None:
    """A filter's number would not match its papers."""
    (index,) = (page for path, page in parsed.items() if path.name == "index.html")
    verdicts = [a["data-verdict"] for _, a in index.elements if "data-entry" in a]
    assert len(verdicts) == len(CARDS) + 1  # the hostile study has no card
    for state, title in gallery.STATES.items():
        assert f"{title} {verdicts.count(state)}" in index.shown


def test_records_that_cannot_be_shown_are_refused(tmp_path: Path) -> None:
    """A verdict that is none would be shown as one."""
    wrong = copy.deepcopy(BY_PAPER["even-ends"])
    wrong["verdict"]["status"] = "probably"
    with pytest.raises(InvalidInput, match="not 'probably'"):
        build_report(CARDS, [wrong], tmp_path)
    with pytest.raises(InvalidInput, match="a card needs an id"):
        build_report([{"title": "Nameless"}], [], tmp_path)


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    """`assay report` would wait for torch."""
    code = (
        "import json, sys, pathlib; from assay.lab.report import build_report; golden, out = map(pathlib.Path, sys.argv[1:]);"
        "build_report(*(json.loads((golden / name).read_text()) for name in ('cards.json', 'results.json')), out);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, GOLDEN, tmp_path], check=False).returncode == 0


@pytest.mark.parametrize("module", [text, pages])
def test_examples_in_docstrings(module: Any) -> None:
    """A documented example would be wrong."""
    assert doctest.testmod(module).failed == 0


# Numbers


@settings(max_examples=50)
@given(st.floats(-1e12, 1e12), st.integers(2, 6))
@example(9.99999, 3)
@example(-0.0, 4)
@example(5e-324, 4)
def test_a_written_number_reads_back(value: float, digits: int) -> None:
    """A number would be written wrong by more than its last digit, or as minus zero."""
    written = text.number(value, digits)
    plain = written.replace(",", "").replace("−", "-")
    if "×" in plain:
        mantissa, power = plain.split(" × 10")
        exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
        back = float(f"{mantissa}e{exponent}")
    else:
        back = float(plain)
    assert math.isclose(back, value, rel_tol=0.51 * 10.0 ** (1 - digits), abs_tol=5e-324)
    assert written not in ("−0", "-0")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "nan", "text", True])
def test_what_is_no_number_is_a_dash(value: object) -> None:
    """A missing value would be written as nan or as 1."""
    for write in (text.number, text.duration, text.size, text.count, text.p_value):
        assert write(value) == "—"


def test_intervals_have_the_digits_of_their_width() -> None:
    """An estimate would claim more digits than its interval bears."""
    assert text.estimate(0.96234567, 0.9591, 0.9656) == "0.9623"
    assert text.interval(0.95912, 0.96561) == "[0.9591, 0.9656]"
    assert text.interval(-12.0, 34.0) == "[−12, 34]"
    assert text.interval(None, 0.5) == "[−∞, 0.500]"
    assert text.estimate(-0.00001, -0.5, 0.5) == "0.0"


def test_resources_have_units() -> None:
    """Bytes would be shown as seconds."""
    assert text.resource("cpu_seconds", 192) == "3 min 12 s"
    assert text.resource("seconds", 3840.0) == "1 h 4 min"
    assert text.resource("peak_memory", 1.5 * 2**20) == "1.50 MiB"
    assert text.resource("memory_bytes", 8 * 2**30) == "8 GiB"
    assert text.resource("parameters", 118_282.0) == "118,282"


@settings(max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_settings_are_exact_enough_to_retype(value: float) -> None:
    """A hyper-parameter would be rounded."""
    assert math.isclose(float(text.setting(value)), value, rel_tol=1e-11)


# Drawings


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_an_axis_keeps_order_and_holds_everything(values: list[float]) -> None:
    """A dot would lie outside of the drawing or on the wrong side of another."""
    axis = strips.Axis.around(values)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert places[0] >= 0 and places[-1] <= 100
    assert (axis.at(-math.inf), axis.at(math.inf)) == (0, 100)
    for percent, label in axis.ticks:
        written = label.replace(",", "").replace("−", "-")
        if "10" + "⁰" not in written and re.fullmatch(r"-?[\d.]+", written):
            assert abs(axis.at(float(written)) - percent) < 0.5


def component(low: float, high: float, bounds: list[float | None], **more: Any) -> dict[str, Any]:
    """Return a component of an outcome with that interval."""
    return {"text": f"{low}", "effect": (low + high) / 2, "interval": [low, high], "range": bounds, "values": [low, None, high], "seeds": [0, 1, 2], **more}  # fmt: skip


def test_a_drawing_has_interval_threshold_and_region_in_place() -> None:
    """A bar would stand on the wrong side of its threshold."""
    drawn = strips.drawing({"components": [component(1.0, 3.0, [0.0, None])]}, {"kind": "greater"})
    assert drawn is not None
    (row,) = drawn.rows
    assert row.bar is not None and row.region is not None and row.effect is not None
    assert row.region[1] == 100
    assert row.limits == [row.region[0]] == [drawn.zero]
    assert row.region[0] < row.bar[0] < row.effect < row.bar[1] < 100
    # 0 to 3 with a margin of 6 % on both sides: 1 lies at (1 + 0.18) / 3.36.
    assert row.bar[0] == pytest.approx(100 * 1.18 / 3.36, abs=0.01)
    assert [seed for _, seed in row.dots] == ["0", "2"]


def test_equivalence_is_drawn_between_both_margins() -> None:
    """Only one of the two margins would be shown."""
    drawn = strips.drawing({"components": [component(-0.5, 0.5, [-1.0, 1.0])]}, {"kind": "equivalent"})
    assert drawn is not None
    low, high = drawn.rows[0].limits
    assert low + high == pytest.approx(100, abs=0.05) and drawn.zero == pytest.approx(50)


def test_many_comparisons_show_the_nearest_to_breaking_the_claim() -> None:
    """A comparison that fails would be folded away."""
    components = [component(i, i + 1.0, [2.0, None]) for i in range(3, 40)] + [component(0.0, 1.0, [2.0, None])]
    drawn = strips.drawing({"components": components}, {"kind": "greater"})
    assert drawn is not None
    assert drawn.rows[0].name == "0.0"
    assert len(drawn.rows) == strips.SHOWN and len(drawn.more) == 38 - strips.SHOWN
    assert max(row.slack for row in drawn.rows) <= min(row.slack for row in drawn.more)


def test_nothing_measured_gives_no_drawing() -> None:
    """An outcome without a single value would break the page."""
    empty = {"text": "a", "effect": None, "interval": None, "values": [None], "seeds": [0], "range": [0.0, None]}
    assert strips.drawing({"components": [empty]}, {}) is None
    assert strips.drawing({"effect": None, "interval": None}, {}) is None


# Curves


def test_a_band_is_the_mean_between_the_extremes() -> None:
    """The line or the band would be something other than the page says."""
    steps = np.array([1.0, 2.0, 3.0])
    made = figures.band([(steps, np.array([1.0, 2.0, 3.0])), (steps, np.array([3.0, 2.0, 7.0]))])
    assert made is not None
    np.testing.assert_allclose(made.mean, [2, 2, 5])
    np.testing.assert_allclose((made.low, made.high), ([1, 2, 3], [3, 2, 7]))


def test_a_seed_that_ends_early_leaves_the_others() -> None:
    """A diverged trial would bend the mean after its end, or its NaN would blank the curve."""
    long = (np.arange(1.0, 5.0), np.array([1.0, 1.0, 1.0, 1.0]))
    short = (np.arange(1.0, 5.0), np.array([3.0, 3.0, np.nan, np.inf]))
    made = figures.band([long, short])
    assert made is not None
    np.testing.assert_allclose(made.mean, [2, 2, 1, 1])
    assert figures.band([(np.array([1.0]), np.array([np.nan]))]) is None
    assert figures.band([]) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=4))
def test_long_curves_are_thinned_to_what_a_panel_can_show(lengths: list[int]) -> None:
    """A page would grow with the number of steps, or a thinned point would lie off its curve."""
    made = figures.band([(np.arange(1.0, n + 1), 2 * np.arange(1.0, n + 1)) for n in lengths])
    assert made is not None
    assert len(made.steps) <= figures.MAX_PLOTTED
    np.testing.assert_allclose(made.mean, 2 * made.steps)
    assert (made.steps[0], made.steps[-1]) == (1, max(lengths))


def test_a_panel_is_svg_with_the_pages_colours() -> None:
    """The SVG would be broken, or would keep its own colours in dark mode."""
    steps = np.arange(1.0, 4.0)
    made = figures.band([(steps, 10.0**-steps)])
    assert made is not None
    svg, logarithmic = figures.curves_svg({place: made for place in range(12)}, "salt")
    root = ElementTree.fromstring(svg)
    assert logarithmic is False  # exactly two decades
    assert root.get("viewBox") == f"0 0 {figures.WIDTH} {figures.HEIGHT}"
    groups = {group.get("class") for group in root.iter("g")} - {None}
    assert groups == {f"arm-{place}" for place in range(12)}
    assert not re.search(r"#fa|#fb|url\(http|rgb", svg)
    assert {f"var(--arm-{i})" for i in range(figures.COLOURS)} <= set(re.findall(r"var\(--arm-\d\)", svg))


def test_only_positive_values_over_decades_get_a_logarithmic_axis() -> None:
    """A loss that touches zero would vanish from its panel."""
    steps = np.arange(1.0, 4.0)
    for values, expected in [([1, 0.1, 0.001], True), ([1, 0.1, 0.0], False), ([1, 0.5, 0.2], False)]:
        made = figures.band([(steps, np.array(values, dtype=float))])
        assert made is not None
        assert figures.curves_svg({0: made}, "salt")[1] is expected


def test_ticks_are_not_rounded_with_the_coordinates() -> None:
    """A tick 0.975 would be written 0.97 or 0.98."""
    steps = np.arange(1.0, 4.0)
    made = figures.band([(steps, np.array([0.9701, 0.975, 0.9799]))])
    assert made is not None
    labels = [node.text for node in ElementTree.fromstring(figures.curves_svg({0: made}, "s")[0]).iter() if node.text]
    assert "0.975" in labels


def test_arms_differ_in_colour_or_dashes() -> None:
    """Two of twelve arms would be drawn alike."""
    assert len({(figures.colour(i), figures.dash(i)) for i in range(28)}) == 28


# Tables


@settings(max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_intervals_of_means_are_students(values: list[float]) -> None:
    """The table's interval would not be the 95 % t interval."""
    made = tables.mean_interval(values)
    assert made is not None
    sem = float(scipy.stats.sem(values))
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), sem) if sem else (values[0], values[0])
    assert made == pytest.approx((np.mean(values), low, high), rel=1e-6, abs=1e-6)


def test_hyperparameters_split_into_shared_and_different() -> None:
    """A difference between arms would be folded into the shared table, or go unmarked."""

    def arm(**values: Any) -> dict[str, Any]:
        return {"hyperparameters": [{"name": n, "value": v, "source": s} for n, (v, s) in values.items()]}

    shared, different = tables.hyperparameter_rows({
        "a": arm(epochs=(10, "table 1"), loss=("mse", "§2"), lr=(0.1, "tuned"), extra=(None, "§3")),
        "b": arm(epochs=(10, "table 1"), loss=("focal", "§2"), lr=(0.1, "table 2")),
    })  # fmt: skip
    assert [(row.name, row.cells[0].value, row.source) for row in shared] == [("epochs", "10", "table 1")]
    rows = {row.name: row for row in different}
    assert [cell.differs for cell in rows["loss"].cells] == [False, True] and rows["loss"].source == "§2"
    assert [cell.note for cell in rows["lr"].cells] == ["tuned", "table 2"]
    assert [cell.value for cell in rows["extra"].cells] == ["none", "—"]


def test_quantities_are_read_from_trials_as_the_judge_reads_them() -> None:
    """The points under a verdict would not be those that it was decided on."""
    found = BY_PAPER["early-riser"]
    finals = tables.final_trials(found)
    made = study.page(found)
    assert made is not None
    assert [strip.title for strip in made.strips] == [
        reach("test_accuracy", above=0.8).text,
        "test_accuracy",
        "seconds",
    ]
    assert made.strips[0].censored and not made.strips[1].censored
    perp = [trial["metrics"]["test_accuracy"] for trial in finals["perp-grad"].values()]
    assert made.strips[1].rows[2].written == text.number(np.mean(perp))
    differences = found["verdict"]["outcomes"][1]["components"][0]["values"]
    plain = [trial["metrics"]["test_accuracy"] for trial in finals["adamw"].values()]
    np.testing.assert_allclose(differences, np.subtract(perp, plain))


# Names and links


@settings(max_examples=50)
@given(st.lists(st.text(max_size=30), max_size=12, unique=True))
@example(["a", "A", "../a", "a/../../b", "", "..", "x" * 300])
def test_file_names_are_safe_and_distinct(ids: list[str]) -> None:
    """A paper's id would write outside of the folder, or over another paper's page."""
    names = links.file_names(ids)
    assert list(names) == ids
    assert len({name.lower() for name in names.values()}) == len(ids)
    for name in names.values():
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,100}", name)


def test_only_known_references_become_links() -> None:
    """A card could make the report link to a script."""
    assert links.reference_url("arXiv:2210.02192") == "https://arxiv.org/abs/2210.02192"
    assert links.reference_url("doi:10.1000/xyz123") == "https://doi.org/10.1000/xyz123"
    assert links.reference_url("https://openreview.net/forum?id=ab_C") == "https://openreview.net/forum?id=ab_C"
    for text_only in (
        "javascript:alert(1)",
        'arXiv:1"><script>',
        "http://x.org",
        "data:text/html,x",
        "",
        "NeurIPS 2022",
    ):
        assert links.reference_url(text_only) is None
    assert links.repository_url("owner/name") == "https://github.com/owner/name"
    assert links.repository_url("../../evil") is None and links.repository_url("a/b/c") is None
