"""Relaxation networks against the equations written per neuron, feed-forward networks and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.models._relaxation import ACTIVATIONS, TopDown
from assay.models.relaxation_net import RelaxationCNN, RelaxationNet


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _net(**options: object) -> RelaxationNet:
    return RelaxationNet((5,), 3, **({"width": (4, 6), "generator": _generator()} | options)).double()


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator(1), dtype=torch.float64)


def _weights(net: RelaxationNet) -> dict[str, Tensor]:
    return {name: connection.weight for name, connection in net.connections.items()}


def test_one_step_is_the_damped_equation() -> None:
    """A step would not be u + damping (F(s) - u) with F the sum of neighbours' weights times activations."""
    net, x = _net(damping=0.3), _x(2, 5)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(_x(*p.shape))
    u = {"l1": _x(2, 4), "l2": _x(2, 6), "out": _x(2, 3)}
    s = {g: 1 / (1 + torch.exp(-4 * v + 2)) for g, v in u.items()}
    w = _weights(net)
    drive = {
        "l1": x @ net.entry.weight.T + net.entry.bias + s["l2"] @ w["l2-l1"].T,
        "l2": s["l1"] @ w["l1-l2"].T + net.connections["l1-l2"].bias + s["out"] @ w["out-l2"].T,
        "out": s["l2"] @ w["l2-out"].T + net.connections["l2-out"].bias,
    }
    relaxed = net.relax(x, 1, u)
    for g in u:
        torch.testing.assert_close(relaxed.state[g], 0.7 * u[g] + 0.3 * drive[g])
    apart = torch.cat([(drive[g] - u[g]) for g in u], 1)
    assert relaxed.residual.item() == pytest.approx(apart.square().mean(1).max().sqrt().item())


def test_feedforward_connections_are_an_ordinary_network() -> None:
    """Without feedback, depth + 1 undamped steps would not be the layers applied in order."""
    net, x = _net(connections="feedforward", damping=1.0, steps=3, readout=False), _x(2, 5)
    h = x
    for layer in (net.entry, net.connections["l1-l2"], net.connections["l2-out"]):
        h = torch.sigmoid(4 * (h @ layer.weight.T + layer.bias) - 2)
    torch.testing.assert_close(net(x), h)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_feedback_starts_at_its_angle_to_the_forward_weights(angle: float) -> None:
    """The angle between W_fb and W_ff^T would be another one; in many dimensions an independent V is orthogonal."""
    net = RelaxationNet((5,), 300, width=(300, 300), feedback_angle=angle, gain=0.5, generator=_generator())
    w = _weights(net)
    for low, high in (("l1", "l2"), ("l2", "out")):
        pair = w[f"{low}-{high}"].flatten(), w[f"{high}-{low}"].T.flatten()
        found = torch.rad2deg(torch.arccos(torch.cosine_similarity(*pair, dim=0).clamp(-1, 1)))
        assert found.item() == pytest.approx(angle, abs=1.0)
        assert w[f"{high}-{low}"].std().item() == pytest.approx(0.5 / 300**0.5, rel=0.02)


def test_loop_has_one_way_connections_only() -> None:
    """The 3-cycle net would have reciprocal pairs, whose symmetry homeostasis could find in the weights."""
    assert set(_net(connections="loop").connections) == {"l1-l2", "l2-out", "out-l1"}


@pytest.mark.parametrize("name", ["sigmoid", "dsilu"])
def test_activations_are_analytic(name: str) -> None:
    """A complex step would not give the derivative, as it does for analytic functions only."""
    sigma, u = ACTIVATIONS[name], _x(20)
    step = sigma(torch.complex(u, torch.full_like(u, 1e-20))).imag / 1e-20
    at = u.clone().requires_grad_()
    (slope,) = torch.autograd.grad(sigma(at).sum(), at)
    torch.testing.assert_close(step, slope)


@pytest.mark.parametrize("net", ["dense", "convolutional"])
def test_drive_is_analytic(net: str) -> None:
    """A complex step through all connections, pools included, would not give the directional derivative."""
    model = _net() if net == "dense" else RelaxationCNN((1, 9, 8), 3, channels=(2, 3), generator=_generator()).double()
    x = _x(2, *model.input_shape)
    injected, s = model.inject(x), {g: _x(2, *shape) for g, shape in model.shapes.items()}
    along = {g: v.flip(1) for g, v in s.items()}
    stepped = model.drive({g: torch.complex(s[g], 1e-20 * along[g]) for g in s}, injected)
    _, exact = torch.func.jvp(lambda state: model.drive(state, injected), (s,), (along,))
    for g in s:
        torch.testing.assert_close(stepped[g].imag / 1e-20, exact[g])


def test_top_down_is_the_gradient_of_the_pooled_product() -> None:
    """Convolutional feedback would not be d/d(lower) of sum(pool(conv(lower)) * upper), odd sizes included."""
    feedback = TopDown(2, 3, bias=False, generator=_generator()).double()
    lower, upper = _x(2, 2, 7, 6).requires_grad_(), _x(2, 3, 3, 3)
    z = torch.nn.functional.conv2d(lower, feedback.weight, padding=1)[:, :, :6]
    weight = torch.exp(z)
    pool = torch.nn.functional.avg_pool2d
    energy = (pool(weight * z, 2) / pool(weight, 2) * upper).sum()
    (expected,) = torch.autograd.grad(energy, lower)
    torch.testing.assert_close(feedback(upper, lower.detach()), expected)


def test_convolutional_net_with_equal_weights_has_a_symmetric_jacobian() -> None:
    """At angle 0 and without biases the drive would not be a gradient."""
    net = RelaxationCNN((1, 8, 8), 3, channels=(2, 3), feedback_angle=0.0, steps=5, generator=_generator()).double()
    field, (state, _) = net.vector_field(_x(1, 1, 8, 8))
    sizes = [v.numel() for v in state.values()]

    def flat(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        moved = field({g: p.view(v.shape) for p, (g, v) in zip(parts, state.items(), strict=True)})
        return torch.cat([v.flatten() for v in moved.values()])

    jacobian = torch.func.jacrev(flat)(torch.cat([v.flatten() for v in state.values()]))
    torch.testing.assert_close(jacobian, jacobian.T)
    assert jacobian.norm() > 0.1


def test_weights_come_from_the_generator_alone() -> None:
    """Models would start apart or draw from the global generator."""
    before = torch.get_rng_state()
    for make in (_net, lambda: RelaxationCNN((1, 8, 8), 3, generator=_generator())):
        assert all(torch.equal(p, q) for p, q in zip(make().parameters(), make().parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options",
    [
        {"connections": "cycle"},
        {"activation": "relu"},
        {"damping": 0.0},
        {"damping": 1.5},
        {"steps": 0},
        {"gain": -1.0},
        {"width": 0},
        {"width": 4, "depth": 0},
        {"width": (4, 6), "depth": 3},
    ],
)
def test_refuses_bad_options(options: dict) -> None:
    """An option out of range would be noticed only by strange dynamics."""
    with pytest.raises(InvalidInput):
        _net(**options)


def test_refuses_inputs_that_do_not_fit() -> None:
    """Images too small for the groups, and inputs of another shape, would fail deep inside."""
    with pytest.raises(InvalidInput):
        RelaxationCNN((1, 2, 2), 3, channels=(2, 3))
    with pytest.raises(InvalidInput):
        RelaxationCNN((64,), 3)
    with pytest.raises(InvalidInput, match=r"expected inputs \(B, 5\)"):
        _net()(_x(2, 4))
    with pytest.raises(InvalidInput, match="at least 1 step"):
        _net().relax(_x(2, 5), 0)
