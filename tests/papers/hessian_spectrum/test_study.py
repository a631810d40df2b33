"""What the study of hessian-spectrum adds of its own: exact spectra, fair arms, and the line between two solutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.papers.hessian_spectrum import study as module
from assay.papers.hessian_spectrum.study import connect_batch_sizes, diagonalise_hessian, study
from assay.streams import Streams

SIZES = {"data": "digits(train=1400, validation=100, test=200)", "samples": 60, "classes": 3, "width": 3}
TRAINING = {"epochs": 3, "lr": 0.05, "momentum": 0.9, "batch_size": 20}


def test_the_spectrum_is_that_of_the_trained_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers would be of other weights, data or classes than those trained: seen from torch's own Hessian."""
    seen: dict[str, torch.Tensor | nn.Module] = {}
    train = module._train

    def spy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *options: object) -> None:
        train(model, x, y, *options)  # type: ignore[arg-type]
        seen.update(model=model, x=x, y=y)

    monkeypatch.setattr(module, "_train", spy)
    found = diagonalise_hessian(Streams("test", 0), **SIZES, **TRAINING)  # type: ignore[arg-type]
    model, x, y = seen["model"].double(), seen["x"].double(), seen["y"]  # type: ignore[union-attr]
    assert len(y) == 60 and y.max() < 3  # type: ignore[arg-type]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([s.numel() for s in shapes])
        w, b, v, c = (part.view(s) for part, s in zip(parts, shapes, strict=True))
        return F.cross_entropy(F.linear(F.linear(x.flatten(1), w, b).relu(), v, c), y)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    assert found["lambda_max"] == pytest.approx(exact[-1].item(), rel=1e-5)
    assert found["negative_edge"] == pytest.approx(abs(exact[0] / exact[-1]).item(), rel=1e-3, abs=1e-7)
    assert found["outliers"] == (exact > 0.1 * exact[-1]).sum() and found["parameters"] == len(flat)
    assert found["lanczos_error"] < 1e-4


def test_a_line_over_a_hill_has_a_barrier() -> None:
    """A barrier would never be seen: between two mirror images of a network lies one of zero weights."""
    model = nn.Linear(1, 2, bias=False)
    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
    w = torch.tensor([3.0, -3.0])
    assert module._barrier(model, w, w, x, y) == pytest.approx(0, abs=1e-7)
    good, bad = module._loss_at(model, w, x, y), module._loss_at(model, -w, x, y)
    assert good < bad

    class Even(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight.abs() * torch.tensor([[1.0], [-1.0]]))

    even = Even(1, 2, bias=False)
    middle = F.cross_entropy(torch.zeros(2, 2), y).item()
    found = module._barrier(even, w, -w, x, y)
    assert found == pytest.approx(middle - good, rel=0.05)


def test_the_basins_arm_reports_the_continued_run() -> None:
    """The line would join a solution with itself."""
    found = connect_batch_sizes(Streams("test", 0), **SIZES, **TRAINING)  # type: ignore[arg-type]
    assert found["distance"] > 0 and found["barrier"] < 1


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_differ_in_one_thing(scale: str) -> None:
    """An arm would also train longer, or on other data."""
    arms = study(scale).arms
    base = arms[next(name for name in arms if name.startswith("width") and list(arms).index(name) == 1)].describe()
    for name, arm in arms.items():
        changed = {key for key, value in arm.describe().items() if value != base[key]}
        allowed = {"basins": {"function"}}.get(name, {name.partition("-")[0]})
        assert changed <= allowed
