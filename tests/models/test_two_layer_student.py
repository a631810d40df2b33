"""The student against its formula, and its gradient against the closed form."""

import math

import pytest
import torch

from assay.errors import InvalidInput
from assay.models.two_layer_student import TwoLayerStudent


def student(**options):
    """A small student with a fixed draw."""
    return TwoLayerStudent((6,), width=9, generator=torch.Generator().manual_seed(0), **options).double()


def test_gradient_of_the_squared_loss_is_the_closed_form():
    """A scaling by sqrt d or sqrt h, or the network itself, is not the paper's."""
    model = student()
    generator = torch.Generator().manual_seed(1)
    X, y = (torch.randn(20, k, generator=generator, dtype=torch.float64) for k in (6, 1))
    W, a = model.hidden.weight, model.head.weight.T
    Z = torch.tanh(X @ W.T / math.sqrt(6))
    assert torch.allclose(model(X), Z @ a / math.sqrt(9))
    (model(X) - y).square().mean().backward()
    R = model(X).detach() - y
    expected = 2 / 20 * ((R @ a.T / math.sqrt(9)) * (1 - Z * Z)).T @ X / math.sqrt(6)
    assert torch.allclose(W.grad, expected)
    assert model.head.weight.grad is None


def test_weights_are_standard_normal_and_drawn_from_the_generator():
    """The draw has another variance, or comes from the global generator."""
    model = TwoLayerStudent((100,), width=300, generator=torch.Generator().manual_seed(0))
    assert model.hidden.weight.std().item() == pytest.approx(1, abs=0.02)
    assert model.head.weight.std().item() == pytest.approx(1, abs=0.15)
    torch.manual_seed(5)
    again = TwoLayerStudent((100,), width=300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.hidden.weight, again.hidden.weight)


def test_shapes_and_what_is_trained():
    """Images are not flattened, the last layer is trained unasked, or an impossible size passes."""
    assert TwoLayerStudent((1, 2, 3), 4, 5)(torch.zeros(7, 1, 2, 3)).shape == (7, 4)
    assert [p.requires_grad for p in student(train_last=True).parameters()] == [True, True]
    for sizes in (((0,), 1, 5), ((3,), 0, 5), ((3,), 1, 0)):
        with pytest.raises(InvalidInput, match="sizes"):
            TwoLayerStudent(*sizes)
