"""GradientNoiseScale against loops over samples, known noise, and the norm test."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models.mlp import MLP
from assay.models.transformer_lm import TransformerLM
from assay.optim.batch_tests import NormTest
from assay.probes.gradient_noise_scale import GradientNoiseScale
from assay.probes.view import View


def _data(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (samples,), generator=generator)


@pytest.mark.parametrize("cuts", [[40], [1, 16, 23], [20, 20]])
def test_it_is_the_variance_of_single_samples_gradients(cuts):
    """Batches, or the blocks that they are computed in, would count as samples."""
    model = MLP((5,), 3, width=4, generator=torch.Generator().manual_seed(1)).double()
    x, y = _data(40)
    rows = []
    for i in range(40):
        gradients = torch.autograd.grad(
            nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), [*model.parameters()]
        )
        rows.append(torch.cat([g.flatten() for g in gradients]))
    table = torch.stack(rows)
    variance = float(table.var(0).sum())
    squared = float(table.mean(0).square().sum()) - variance / 40
    found = GradientNoiseScale().measure(View(model), list(zip(x.split(cuts), y.split(cuts), strict=True)))
    assert found["gradient_variance"] == pytest.approx(variance)
    assert found["gradient_norm_squared"] == pytest.approx(squared)
    assert found["gradient_noise_scale"] == pytest.approx(variance / squared)
    # the norm test with a tolerance of 1 suggests the same size, but for its biased norm
    assert NormTest(1.0)({"all": table}) == pytest.approx(variance / (squared + variance / 40))


def test_known_noise_has_the_scale_that_it_was_made_with():
    """Without the correction a small sample's mean would look too long: half this noise scale with as many samples."""
    d, s, n = 50, 0.5, 60
    model = nn.Linear(1, d, bias=False).double()
    nn.init.zeros_(model.weight)
    generator = torch.Generator().manual_seed(0)
    measured = []
    for _ in range(60):
        y = 0.1 + s * torch.randn(n, d, generator=generator, dtype=torch.float64)
        view = View(model, loss=lambda scores, y: 0.5 * (scores - y).square().sum() / len(y))
        measured.append(GradientNoiseScale().measure(view, [(torch.ones(n, 1, dtype=torch.float64), y)]))
    squared = sum(m["gradient_norm_squared"] for m in measured) / 60
    variance = sum(m["gradient_variance"] for m in measured) / 60
    # gradients are -y: mean (0.1, ..., 0.1), variance s^2 in each of d entries
    assert squared == pytest.approx(d * 0.01, rel=0.05)
    assert variance / squared == pytest.approx(d * s**2 / (d * 0.01), rel=0.06)


def test_sequences_are_samples_of_a_language_model():
    """Tokens of one sequence share their activations; they are no samples of their own."""
    torch.manual_seed(0)
    model = TransformerLM((6,), 7, width=8, depth=1, heads=2).double()
    x, y = torch.randint(0, 7, (9, 6)), torch.randint(0, 7, (9, 6))
    loss = lambda scores, y: nn.functional.cross_entropy(scores.flatten(0, -2), y.flatten())  # noqa: E731
    rows = []
    for i in range(9):
        gradients = torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]), [*model.parameters()])
        rows.append(torch.cat([g.flatten() for g in gradients]))
    view = View(model, scores=lambda out: out.flatten(1), loss=lambda scores, y: loss(scores.unflatten(1, (6, 7)), y))
    found = GradientNoiseScale().measure(view, [(x, y)])
    assert found["gradient_variance"] == pytest.approx(float(torch.stack(rows).var(0).sum()))


def test_equal_samples_have_none_and_what_cannot_be_measured_says_why():
    """A value without a meaning would be plotted as if it had one."""
    model, probe = MLP((5,), 3, width=4).double(), GradientNoiseScale()
    x, y = _data(1)
    assert probe.measure(View(model), [(x.expand(4, 5), y.expand(4))])["gradient_noise_scale"] == pytest.approx(
        0, abs=1e-20
    )
    assert math.isnan(probe.measure(View(model), [(x, y)])["gradient_noise_scale"]) and "2 samples" in str(
        probe.skipped
    )
    opposite = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(opposite.weight)
    view = View(opposite, loss=lambda scores, y: (scores - y).square().mean())
    found = probe.measure(view, [(torch.ones(2, 1), torch.tensor([[1.0], [-1.0]]))])
    assert (
        math.isnan(found["gradient_noise_scale"]) and found["gradient_variance"] == 8 and "more" in str(probe.skipped)
    )
    with pytest.raises(InvalidInput, match="no trainable"):
        probe.measure(View(model.requires_grad_(False)), [(x, y)])
