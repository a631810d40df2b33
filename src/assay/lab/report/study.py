"""What the page of one result shows: its verdict in words, drawings, curves and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from assay.lab.pictures import data_uri, png_of_uri
from assay.lab.quantities import Quantity
from assay.lab.report import figures, gallery, measured, strips, tables, text

__all__: list[str] = []

OPEN_PANELS = 6
MOST_PANELS = 48
OPEN_METRICS = 10

Finals = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Panel:
    """One figure: the quantity's name, what its axes show, and the drawing."""

    title: str
    x: str
    y: str
    svg: Markup


@dataclass(frozen=True)
class Outcome:
    """One expectation: what was expected, what came out, and the drawing of it."""

    text: str
    status: str
    reason: str
    facts: list[tuple[str, str]]
    drawing: strips.Drawing | None


@dataclass(frozen=True)
class StudyPage:
    """Everything that `study.html.j2` shows of a result."""

    result: Mapping[str, Any]
    state: str
    arms: list[str]
    sentence: str
    method: str
    facts: list[tuple[str, str]]
    outcomes: list[Outcome]
    scatters: list[Panel]
    strips: list[strips.Strip]
    panels: list[Panel]
    more_panels: list[Panel]
    left_out: int
    metrics: list[tables.Row]
    more_metrics: list[tables.Row]
    endings: list[tables.Row]
    shared: list[tables.Row]
    different: list[tables.Row]
    tuning: list[tables.Row]
    tuning_note: str
    resources: list[tables.Row]
    totals: dict[str, str]
    pictures: list[tuple[str, list[tuple[str, str]]]]
    environment: list[tuple[str, str]] = field(default_factory=list)


def page(result: Mapping[str, Any] | None) -> StudyPage | None:
    """Lay out a result; None stays None (a paper without one)."""
    if result is None:
        return None
    finals = tables.final_trials(result)
    quantities = measured.quantities(result.get("expectations") or ())
    claimed = [name for quantity in quantities for name in measured.names(quantity)]
    panels = _panels(finals, claimed)
    metrics = tables.metric_rows(finals, claimed)
    # Every table has a column per arm in the same order, also for an arm that only the trials name.
    arms = {name: (result.get("arms") or {}).get(name) or {} for name in finals}
    shared, different = tables.hyperparameter_rows(arms)
    return StudyPage(
        result=result,
        state=gallery.state({"status": "implemented"}, result),
        arms=list(finals),
        sentence=_sentence(result),
        method=_method(result),
        facts=_facts(result, finals),
        outcomes=_outcomes(result),
        scatters=_scatters(result, finals),
        strips=_strips(quantities, finals),
        panels=panels[:OPEN_PANELS],
        more_panels=panels[OPEN_PANELS:MOST_PANELS],
        left_out=len(panels[MOST_PANELS:]),
        metrics=metrics[:OPEN_METRICS],
        more_metrics=metrics[OPEN_METRICS:],
        endings=tables.outcome_rows(finals),
        shared=shared,
        different=different,
        tuning=tables.tuning_rows(arms, result.get("trials") or ()),
        tuning_note=tables.tuning_note(arms, result.get("trials") or ()),
        resources=tables.resource_rows(finals),
        totals=tables.resource_totals(result.get("resources") or {}),
        pictures=_pictures(result.get("pictures") or {}),
        environment=_environment(result.get("environment") or {}),
    )


def _pictures(pictures: Mapping[str, Mapping[str, str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (arm, [(name, address)]); an address is rebuilt from its bytes, so that no other one gets onto a page."""
    found = [(arm, [(n, data_uri(png_of_uri(u))) for n, u in named.items()]) for arm, named in pictures.items()]
    return [(arm, named) for arm, named in found if named]


def _sentence(result: Mapping[str, Any]) -> str:
    """Say the verdict as a sentence."""
    verdict = result.get("verdict")
    if not verdict:
        return ""
    scale = f"at {result.get('scale')} scale"
    return {
        "holds": f"The claim holds {scale}.",
        "fails": f"The claim fails {scale}.",
        "inconclusive": f"Inconclusive {scale}: the evidence decides neither way.",
    }[gallery.checked(verdict)] + f" {_tally(verdict.get('outcomes') or [])}"


def _tally(outcomes: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(gallery.checked(outcome) for outcome in outcomes)
    if not counts:
        return ""
    if len(counts) == 1:
        status, n = next(iter(counts.items()))
        singular, many = {"holds": ("holds", "hold"), "fails": ("fails", "fail")}.get(status, (f"is {status}",) * 2)
        if status == "inconclusive":
            many = "are inconclusive"
        return f"Its one expectation {singular}." if n == 1 else f"All {n} expectations {many}."
    words = {"holds": "hold", "fails": "fail", "inconclusive": "inconclusive"}
    said = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    return f"Of {len(outcomes)} expectations: {text.listing(said)}."


def _method(result: Mapping[str, Any]) -> str:
    """Say how the intervals were made and what they cover."""
    method = str((result.get("verdict") or {}).get("method") or "").strip().rstrip(".")
    covers = str(result.get("covers") or "").strip().rstrip(".")
    said = [method[:1].upper() + method[1:], f"Across seeds vary: {covers}" if covers else ""]
    return " ".join(f"{sentence}." for sentence in said if sentence)


def _facts(result: Mapping[str, Any], finals: Finals) -> list[tuple[str, str]]:
    trials = list(result.get("trials") or ())
    endings = Counter(str(t.get("status", "done")) for t in trials)
    stages = Counter(str(t.get("stage", "final")) for t in trials)
    tuned = f" ({stages['tune']} tuning)" if stages["tune"] else ""
    facts = [
        ("Scale", str(result.get("scale") or text.MISSING)),
        ("Seeds", text.count(result.get("seeds"))),
        ("Arms", str(len(finals))),
        (
            "Trials",
            f"{len(trials)}{tuned}" if trials else text.count((result.get("resources") or {}).get("trials")),
        ),
    ]
    if trials:
        facts += [
            ("Diverged", str(endings["diverged"] or "none")),
            ("Timed out", str(endings["timeout"] or "none")),
        ]
    facts.append(("CPU time", text.duration((result.get("resources") or {}).get("cpu_seconds"))))
    return [*facts, ("Recorded", str(result.get("recorded") or text.MISSING))]


def _outcomes(result: Mapping[str, Any]) -> list[Outcome]:
    outcomes = (result.get("verdict") or {}).get("outcomes") or []
    plain = [*(result.get("expectations") or []), *({} for _ in outcomes)]
    return [_outcome(outcome, expectation) for outcome, expectation in zip(outcomes, plain, strict=False)]


def _outcome(outcome: Mapping[str, Any], expectation: Mapping[str, Any]) -> Outcome:
    drawing = strips.drawing(outcome, expectation)
    ends = outcome.get("interval") or (None, None)
    bound = text.finite(outcome.get("threshold"))
    # A drawing says the first three of every comparison.
    drawn = [
        ("effect", text.estimate(outcome.get("effect"), *ends)),
        ("interval", text.interval(*ends)),
        ("threshold", text.MISSING if bound is None else text.short(bound)),
    ]
    facts = [
        *([] if drawing else drawn),
        ("n", text.count(outcome.get("n"))),
        ("p", text.p_value(outcome.get("p_value"))),
        ("p, adjusted", text.p_value(outcome.get("adjusted_p_value"))),
        ("p, sign flip", text.p_value(outcome.get("sign_flip_p_value"))),
    ]
    return Outcome(
        text=str(outcome.get("text") or ""),
        status=gallery.checked(outcome),
        reason=str(outcome.get("reason") or ""),
        facts=[(name, value) for name, value in facts if value != text.MISSING],
        drawing=drawing,
    )


def _strips(quantities: Sequence[Quantity], finals: Finals) -> list[strips.Strip]:
    drawn = [(quantity.text, measured.values(quantity, finals)) for quantity in quantities]
    return [strips.strip(title, values) for title, values in drawn if any(values.values())]


def _scatters(result: Mapping[str, Any], finals: Finals) -> list[Panel]:
    """Draw the pairs of every expectation that two quantities go together."""
    panels = []
    for index, expectation in enumerate(result.get("expectations") or ()):
        pair = measured.quantities([{key: expectation.get(key)} for key in ("x", "y")])
        if len(pair) != 2:
            continue
        xs, ys = (measured.values(quantity, finals) for quantity in pair)
        points = {
            place: [(x, ys[arm][seed][0]) for seed, (x, _) in xs[arm].items() if seed in ys[arm]]
            for place, arm in enumerate(finals)
        }
        if any(points.values()):
            x, y = (text.label(quantity.text) for quantity in pair)
            svg = figures.scatter_svg(points, salt=f"scatter-{index}")
            panels.append(Panel(f"{y} against {x}", x, "", Markup(svg)))
    return panels


def _panels(finals: Finals, first: Sequence[str]) -> list[Panel]:
    """Draw a panel per series, the main ones first."""
    trials = [trial for seeds in finals.values() for trial in seeds.values()]
    names = tables.in_order((name for trial in trials for name in trial.get("series") or {}), first)
    panels = (_panel(name, finals, f"curve-{index}") for index, name in enumerate(names))
    return [panel for panel in panels if panel is not None]


def _panel(name: str, finals: Finals, salt: str) -> Panel | None:
    found = {arm: [t["series"][name] for t in seeds.values() if name in (t.get("series") or {})]
             for arm, seeds in finals.items()}  # fmt: skip
    bands = {place: figures.band([_curve(s) for s in series]) for place, series in enumerate(found.values())}
    drawn = {place: b for place, b in bands.items() if b is not None}
    if not drawn:
        return None
    unit = next(str(s.get("unit") or "step") for series in found.values() for s in series)
    svg, logarithmic = figures.curves_svg(drawn, salt)
    return Panel(text.label(name), unit, "log scale" if logarithmic else "", Markup(svg))


def _curve(series: Mapping[str, Any]) -> figures.Curve:
    pairs = [(text.finite(s), text.finite(v)) for s, v in zip(series["steps"], series["values"], strict=False)]
    kept = np.array([(s, v) for s, v in pairs if s is not None and v is not None], dtype=float).reshape(-1, 2)
    return kept[:, 0], kept[:, 1]


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    def write(name: str, value: Any) -> str:
        if name.endswith("_bytes"):
            return text.size(value)
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text.setting(entry)}" for key, entry in value.items())
        return text.setting(value)

    return [(text.label(name).removesuffix(" bytes"), write(name, value)) for name, value in environment.items()]
