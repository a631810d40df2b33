"""Gradient norms against backward(), spikes against the definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.errors import InvalidInput
from assay.models.transformer_lm import TransformerLM
from assay.probes.gradient_norm_trace import GradientNormTrace, spike_ratio
from assay.probes.view import View


def test_norms_are_those_of_backward() -> None:
    """Batches of different sizes would not be averaged by sample, or a layer's norm be another's."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(7, 3, generator=generator), torch.arange(7) % 2
    values = GradientNormTrace().measure(View(model), [(x[:5], y[:5]), (x[5:], y[5:])])
    F.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        assert values[f"gradient_norm/{name}"] == pytest.approx(parameter.grad.norm().item(), rel=1e-5)
    whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert values["gradient_norm"] == pytest.approx(whole, rel=1e-5)
    assert values["gradient_spike"] == 1.0


def test_a_language_models_tokens_are_samples() -> None:
    """Scores (B, T, C) would be refused, or averaged over windows only."""
    model = TransformerLM((5,), 7, width=8, depth=1, generator=torch.Generator().manual_seed(0))
    x = torch.randint(0, 7, (3, 6), generator=torch.Generator().manual_seed(1))
    values = GradientNormTrace(per_tensor=False).measure(View(model), [(x[:, :-1], x[:, 1:])])
    F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert values == {"gradient_norm": pytest.approx(whole, rel=1e-5), "gradient_spike": 1.0}


def test_windows_of_one_token_are_samples() -> None:
    """Scores (B, 1, C) have as many rows as there are windows, and targets (B, 1) would not become (B,)."""
    model = TransformerLM((1,), 7, width=8, depth=1, generator=torch.Generator().manual_seed(0))
    x = torch.randint(0, 7, (3, 2), generator=torch.Generator().manual_seed(1))
    found = GradientNormTrace(per_tensor=False).measure(View(model), [(x[:, :1], x[:, 1:])])
    F.cross_entropy(model(x[:, :1])[:, 0], x[:, 1]).backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert found["gradient_norm"] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("outputs", "targets"), [(1, torch.tensor([[0], [1], [1]])), (2, torch.tensor([[0.5], [-1.0], [2.0]]))]
)
def test_targets_that_are_no_tokens_keep_their_shape(outputs: int, targets: torch.Tensor) -> None:
    """Scores (B, 1) against (B,) would broadcast to (B, B), scores (B, 2) not at all."""

    def loss(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((scores - y) ** 2).mean()

    model, x = nn.Linear(2, outputs), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    found = GradientNormTrace().measure(View(model, loss=loss), [(x, targets)])
    loss(model(x), targets).backward()
    assert found["gradient_norm/weight"] == pytest.approx(model.weight.grad.norm().item(), rel=1e-5)


def test_a_complex_gradient_has_both_parts() -> None:
    """The imaginary part would be dropped, with no more than a warning."""
    model = nn.Linear(2, 3, dtype=torch.complex64)
    x = torch.randn(4, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    view, y = View(model, scores=lambda output: output.abs()), torch.tensor([0, 1, 2, 0])
    found = GradientNormTrace().measure(view, [(x, y)])
    F.cross_entropy(model(x).abs(), y).backward()
    for name, p in model.named_parameters():
        assert found[f"gradient_norm/{name}"] == pytest.approx(torch.view_as_real(p.grad).norm().item(), rel=1e-5)


def test_spikes_over_measurements() -> None:
    """The spike would be relative to the last or the mean measurement, or be forgotten once it is over."""
    model, probe = nn.Linear(1, 1, bias=False), GradientNormTrace()
    view = View(model, loss=lambda scores, y: (scores * y).mean())
    found = [
        probe.measure(view, [(torch.ones(2, 1), torch.full((2, 1), float(size)))])["gradient_spike/weight"]
        for size in (1, 2, 3, 30, 3, 3)
    ]
    assert found == pytest.approx([1.0, 2.0, 1.5, 15.0, 10.0, 10.0])
    assert probe.norms[""] == probe.norms["weight"]
    norms = torch.tensor([[1.0, 4.0], [3.0, 4.0], [2.0, 4.0]])
    assert spike_ratio(norms).tolist() == [1.5, 1.0]
    with pytest.raises(InvalidInput, match="shape"):
        spike_ratio(torch.zeros(0, 3))


def test_what_has_no_gradient_is_said() -> None:
    """A frozen network, a NaN or an unused parameter would give a number, or a NaN spoil later spikes."""
    model, probe = nn.Linear(2, 2), GradientNormTrace()
    batch = [(torch.ones(3, 2), torch.tensor([0, 1, 0]))]
    first = probe.measure(View(model), batch)
    weight = model.weight.detach().clone()
    model.weight.data.fill_(math.nan)
    assert math.isnan(probe.measure(View(model), batch)["gradient_norm"]) and "gradient_norm" in probe.skipped
    model.weight.data.copy_(weight)
    assert probe.measure(View(model), batch) == first and not probe.skipped
    unused = nn.Linear(2, 2)
    unused.extra = nn.Parameter(torch.ones(1))
    fresh = GradientNormTrace()
    values = fresh.measure(View(unused), batch)
    assert values["gradient_norm/extra"] == 0.0 and math.isnan(values["gradient_spike/extra"])
    assert "gradient_spike/extra" in fresh.skipped
    assert math.isnan(GradientNormTrace().measure(View(model.requires_grad_(False)), batch)["gradient_norm"])
    with pytest.raises(InvalidInput, match="one probe per network"):
        fresh.measure(View(nn.Linear(2, 2)), batch)
