"""A black box as a layer: what comes out, and which gradients cross it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn.physical_transform import PhysicalTransform


def _inputs() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()


def _response(h: Tensor) -> Tensor:
    return h[:, :2].round() + h[:, 1:].abs()


def _system(h: Tensor) -> Tensor:
    assert not torch.is_grad_enabled() and not h.requires_grad, "the system was asked for a gradient"
    return _response(h)


def _model(h: Tensor) -> Tensor:
    return h[:, :2] * h[:, 1:].cos()


def test_system_on_arrays_is_the_system_on_tensors() -> None:
    """A driver that speaks NumPy would get a tensor, or its answer come back in another type."""

    def measured(h: np.ndarray) -> np.ndarray:
        assert isinstance(h, np.ndarray)
        backwards = (np.round(h[:, :2]) + np.abs(h[:, 1:])).astype(np.float32)[::-1].copy()
        return backwards[::-1]  # negative strides, which torch does not take

    h = _inputs()
    found = PhysicalTransform(measured, 2, numpy=True)(h)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, _response(h), rtol=1e-6, atol=1e-6)


def test_no_gradient_crosses_a_black_box() -> None:
    """Training through hardware would silently learn nothing before it."""
    layer = PhysicalTransform(_system, 2)
    output = layer(_inputs().requires_grad_())
    torch.testing.assert_close(output.detach(), _response(_inputs()))
    with pytest.raises(InvalidInput, match="no gradient crosses"):
        output.sum().backward()


def test_layers_after_a_black_box_get_gradients() -> None:
    """A digital layer behind the system could not be trained."""
    layer, digital = PhysicalTransform(_system, 2), nn.Linear(2, 1).double()
    digital(layer(_inputs())).sum().backward()
    torch.testing.assert_close(digital.weight.grad[0], _response(_inputs()).sum(0))


def test_straight_through_has_the_systems_value_and_the_models_gradient() -> None:
    """Physics-aware training would run the model forward, or differentiate it elsewhere."""
    layer = PhysicalTransform(_system, 2, model=_model, mode="straight-through")
    h, weights = _inputs().requires_grad_(), torch.tensor([0.3, -2.0]).double()
    output = layer(h)
    assert torch.equal(output, _response(_inputs()))
    (found,) = torch.autograd.grad((output * weights).sum(), h)
    (expected,) = torch.autograd.grad((_model(h) * weights).sum(), h)
    torch.testing.assert_close(found, expected)


def test_a_model_is_trained_on_and_the_system_deployed() -> None:
    """In-silico training would touch the system, or its test accuracy be the model's."""
    layer = PhysicalTransform(_system, 2, model=_model, mode="model")
    h = _inputs()
    assert torch.equal(layer(h), _model(h)) and layer.calls == 0
    assert torch.equal(layer.eval()(h), _response(h)) and (layer.calls, layer.rows) == (1, 4)


@pytest.mark.parametrize("arrays", [True, False])
def test_a_driver_may_reuse_its_buffer_and_work_in_place(arrays: bool) -> None:
    """A driver's next answer would overwrite the layer's last output, or its normalisation the user's data."""
    buffer = torch.empty(4, 2, dtype=torch.float64)

    def driver(h: object) -> object:
        h -= h.min()  # type: ignore[operator,attr-defined]
        buffer.copy_(_response(torch.as_tensor(h)))
        return buffer.numpy() if arrays else buffer

    layer, h = PhysicalTransform(driver, 2, numpy=arrays), _inputs()
    first = layer(h)
    layer(2 * h + 1)
    assert torch.equal(h, _inputs()) and torch.equal(first, _response(h - h.min()))


def test_the_systems_and_the_models_parameters_are_frozen() -> None:
    """An optimizer over the network would train the simulation or the fitted model."""
    system, model = nn.Linear(3, 2), nn.Linear(3, 2)
    layer = PhysicalTransform(system, 2, model=model, mode="straight-through")
    layer(_inputs().float().requires_grad_()).sum().backward()
    assert not any(p.requires_grad or p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PhysicalTransform(_system, 2, mode="guess"), "mode must be one of"),
        (lambda: PhysicalTransform(_system, 2, mode="model"), "give model="),
        (lambda: PhysicalTransform(_system, 3)(_inputs()), r"gave \(4, 2\).*expected \(4, 3\)"),
        (lambda: PhysicalTransform(lambda h: h[0], 3)(_inputs()), "one row per sample"),
    ],
)
def test_bad_input_is_refused(make: object, message: str) -> None:
    """A wrong shape or mode would show up later as something else."""
    with pytest.raises(InvalidInput, match=message):
        make()  # type: ignore[operator]
