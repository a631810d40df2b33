"""What the study of diffGrad adds of its own: the three functions, their global minima, and the three paths."""

from __future__ import annotations

import pytest
import torch

from assay.papers.diffgrad.analytic import analytic, global_basin, slopes, values
from assay.papers.diffgrad.paths import paths
from assay.papers.diffgrad.study import OPTIMIZERS, study
from assay.streams import Streams


def test_slopes_are_the_derivatives_of_the_functions():
    """A slope would belong to another function than the paper's, or a piece begin at the wrong place."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        x = (2.4 * torch.rand(3, generator=generator, dtype=torch.float64) - 1.2).requires_grad_()
        (expected,) = torch.autograd.grad(values(x).sum(), x)
        torch.testing.assert_close(slopes(x.detach()), expected)


def test_the_functions_are_continuous_where_the_paper_says():
    """Pieces would not meet; F1 and F2 have small steps in the paper too."""
    for place, function, gap in ((0.0, 0, 1e-9), (-0.9, 1, 0.02), *((p, 2, 1e-9) for p in (-0.5, -0.4, 0, 0.4, 0.5))):
        left, right = (values(torch.full((3,), place + d, dtype=torch.float64))[function] for d in (-1e-12, 1e-12))
        assert abs(left - right) < gap + 1e-9, (place, function)


def test_the_basins_hold_the_global_minima_and_no_local_ones():
    """Ending in a local minimum would be counted as success."""
    grid = torch.linspace(-1.5, 1.5, 30001, dtype=torch.float64)
    found = torch.stack([values(x.repeat(3)) for x in grid[::10]])
    grid = grid[::10]
    for i in range(3):
        f = found[:, i]
        inside = torch.stack([global_basin(x.repeat(3))[i] for x in grid])
        assert inside[f.argmin()], f"F{i + 1}"
        lows = (f[1:-1] < f[:-2]) & (f[1:-1] <= f[2:])
        assert (lows & inside[1:-1]).sum() == 1, f"F{i + 1} has one minimum in its basin"
        assert (lows & ~inside[1:-1]).sum() >= 1, f"F{i + 1} has a local minimum outside"


def test_the_papers_contrast_is_there_at_its_rate_and_so_is_the_controls():
    """At 0.1 from -1 Adam would not overshoot F1's global minimum, or diffGrad and Adam at half the rate would."""
    ends = {}
    for name, make in {
        "adam": lambda x: torch.optim.Adam(x, lr=0.1, betas=(0.95, 0.999)),
        "half": lambda x: torch.optim.Adam(x, lr=0.05, betas=(0.95, 0.999)),
    }.items():
        x = torch.nn.Parameter(torch.full((3,), -1.0, dtype=torch.float64))
        optimizer = make([x])
        for _ in range(300):
            x.grad = slopes(x.detach())
            optimizer.step()
        ends[name] = x.detach()
    assert not global_basin(ends["adam"])[0]
    assert global_basin(ends["half"])[0]
    assert ends["half"][0].item() == pytest.approx(-0.3, abs=1e-3)


def test_the_share_counts_rates_and_functions():
    """At tiny rates all of it stays left of the barriers; F3 starts beside a local minimum at -0.5 and ends there."""
    found = analytic(Streams("t", 0), optimizer="adam", rate_factor=0.1, rates=1, spread=0.0)
    assert found == {
        "global_share": pytest.approx(2 / 3),
        "global_share_f1": 1.0,
        "global_share_f2": 1.0,
        "global_share_f3": 0.0,
    }


def test_paths_start_together_and_the_ratio_is_small():
    """With frictions near one half, diffGrad would not follow Adam at half the rate, or copies not share their draws."""
    record = paths(
        Streams("t", 0),
        data="digits(train=100, validation=10, test=50)",
        model="cnn(channels=(4,))",
        epochs=1,
        batch_size=25,
        lr=1e-3,
    )
    assert record.metrics["distance_ratio"] < 0.2
    assert 0.5 <= record.metrics["friction"] <= record.metrics["friction_max"] < 1
    assert {"friction/block1.0.weight", "friction/head.weight"} <= set(record.series)


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_all_optimizers_have_as_many_candidates(scale):
    """An optimizer would be tuned more than another, or a hyper-parameter have no source."""
    made = study(scale)
    counts = {len(made.arms[f"{data}/{name}"].tuning()) for data in _data(made) for name in OPTIMIZERS}
    assert len(counts) == 1
    assert made.unsourced() == []


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_whatever_is_expected_over_adam_is_expected_over_the_control(scale):
    """The shorter step would be taken for friction, or the control run at other rates than half of Adam's."""
    made = study(scale)
    statements = {e.text for e in made.expects}
    over_adam = [s for s in statements if s.endswith("/adam")]
    assert len(over_adam) == 1 + len(_data(made))
    assert {f"{s}-half" for s in over_adam} <= statements
    for data in _data(made):
        adam, half = (
            [p.overrides["optimizer.lr"] for p in made.arms[f"{data}/{n}"].tuning()] for n in ("adam", "adam-half")
        )
        assert half == pytest.approx([rate / 2 for rate in adam])


def _data(made):
    return {name.partition("/")[0] for name in made.arms} - {"functions"}
