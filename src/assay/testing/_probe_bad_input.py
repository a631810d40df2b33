"""What every probe must say to bad input: one clear line, or NaN with a reason, never a silent number.

The networks have the shapes and layer names of those in `assay.testing.probes` (4 -> 8 -> 6 -> 3), so that a case that
names layers fits them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.testing._shared import seeded
from assay.watch import Watch

__all__: list[str] = []

Factory = Callable[[], Any]
CLASSES, WIDTH, SAMPLES = 3, 6, 48


class _Network(nn.Sequential):
    """The plain classifier; subclasses change what it returns or what it holds."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, WIDTH), nn.ReLU()),
            nn.Linear(WIDTH, CLASSES),
        )

    def filled(self) -> _Network:
        """Give all parameters seeded values."""
        generator = seeded(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
        return self

    def up_to(self, last: int, x: Tensor) -> Tensor:
        """Run the layers before number `last`."""
        for layer in list(self.children())[:last]:
            x = layer(x)
        return x


class _TwoHeads(_Network):
    """Returns the scores of two heads, or of the first; the second runs last."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both, self.aux = both, nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Any:
        features = self.up_to(6, x)
        scores, others = self[6](features), self.aux(features)
        return (scores, others) if self.both else scores


class _Spare(_Network):
    """Holds a trainable layer that never runs, so that its gradient is None."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_to(7, x)


class _Tied(_Network):
    """Two layers share one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Linear(8, 8), nn.Linear(8, 8)
        second.weight = first.weight
        self[3] = nn.Sequential(first, second)


class _Bare(nn.Module):
    """Parameters without any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, WIDTH, generator=seeded(1)))
        self.second = nn.Parameter(torch.randn(WIDTH, CLASSES, generator=seeded(2)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.second


def _data() -> tuple[Tensor, Tensor]:
    targets = torch.arange(SAMPLES) % CLASSES
    return torch.randn(SAMPLES, 4, generator=seeded(2)) + 2 * targets[:, None], targets


def _said(
    factory: Factory, model: nn.Module, data: tuple[Tensor, Tensor] | None = None, **options: Any
) -> dict[str, float] | str:
    """Return the values, all of them finite or NaN with a reason, or the error's one line."""
    watch = Watch(model, [factory()], _data() if data is None else data, batch_size=16, **options)
    try:
        values = watch.measure(0)
    except ValueError as error:
        assert "\n" not in str(error), f"the error has more than one line: {error}"
        return str(error)
    except Exception as error:
        raise AssertionError(f"expected a ValueError (assay.errors.InvalidInput), got {error!r}") from error
    assert values, "the probe returned nothing and said nothing"
    for key, value in values.items():
        assert not math.isinf(value), f"{key} is infinite"
        assert not math.isnan(value) or watch.skipped.get(key), f"{key} is NaN and `skipped` does not say why"
    return values


def _assert_same_or_nan(found: dict[str, float] | str, clean: Mapping[str, float] | str, what: str) -> None:
    if isinstance(found, str) or isinstance(clean, str):
        return
    for key, value in found.items():
        untouched = key in clean and math.isclose(value, clean[key], rel_tol=1e-6, abs_tol=1e-9)
        assert math.isnan(value) or untouched, f"{key} is {value!r} although {what}"


def says_not_a_number(factory: Factory) -> None:
    """A NaN in one sample, or in one weight: an error, NaN with a reason, or what no NaN has reached."""
    clean = _said(factory, _Network().filled())
    inputs, targets = _data()
    inputs[5, 1] = math.nan
    _assert_same_or_nan(_said(factory, _Network().filled(), (inputs, targets)), clean, "a sample is NaN")
    for layer in (0, 6):
        model = _Network().filled()
        with torch.no_grad():
            model.get_parameter(f"{layer}.weight")[1, 2] = math.nan
        _assert_same_or_nan(_said(factory, model), clean, f"a weight of layer {layer} is NaN")


def says_poor_data(factory: Factory) -> None:
    """Data of a single class, one sample per class or one sample: an error, or NaN with a reason."""
    inputs, targets = _data()
    for data in ((inputs, torch.zeros_like(targets)), (inputs[:CLASSES], targets[:CLASSES]), (inputs[:1], targets[:1])):
        _said(factory, _Network().filled(), data)


def says_odd_parameters(factory: Factory) -> None:
    """A layer that never runs, weights that are all frozen or tied, no layer at all: an error, or NaN with a reason."""
    frozen = _Network().filled().requires_grad_(False)
    for model in (_Spare().filled(), frozen, _Tied().filled(), _Bare()):
        _said(factory, model)


def says_two_heads(factory: Factory) -> None:
    """Of two outputs none is measured before the user says which one; then it is that head that is measured."""
    single = _said(factory, _TwoHeads(both=False).filled(), scores=lambda output: output)
    unsaid = _said(factory, _TwoHeads(both=True).filled())
    if isinstance(unsaid, str):
        assert "scores=" in unsaid, f"the error does not say what to do: {unsaid}"
    else:
        _assert_same_or_nan(unsaid, single, "the model has two outputs")
    chosen = _said(factory, _TwoHeads(both=True).filled(), scores=lambda output: output[0])
    assert type(chosen) is type(single), f"one head: {single}; the same head of two: {chosen}"
    if isinstance(chosen, dict) and isinstance(single, dict):
        assert chosen.keys() == single.keys(), "the quantities of one head of two differ"
        for key, value in single.items():
            assert math.isnan(value) or math.isclose(chosen[key], value, rel_tol=1e-6, abs_tol=1e-9), (
                f"{key} of one head of two is {chosen[key]!r}, not {value!r}"
            )


def refuses_unknown_layers(factory: Factory) -> None:
    """A probe that takes `layers` refuses one that the model does not have, and names it."""
    kind = type(factory())
    if "layers" not in inspect.signature(kind.__init__).parameters:
        return
    try:
        probe = kind(layers=["no-such-layer"])
    except (TypeError, InvalidInput):
        return  # needs more arguments than a check can guess
    said = _said(lambda: probe, _Network().filled())
    assert isinstance(said, str) and "no-such-layer" in said, f"an unknown layer gave {said}"


CHECKS: dict[str, Callable[[Factory], None]] = {
    "says-not-a-number": says_not_a_number,
    "says-poor-data": says_poor_data,
    "says-odd-parameters": says_odd_parameters,
    "says-two-heads": says_two_heads,
    "refuses-unknown-layers": refuses_unknown_layers,
}
