"""The exponentiated gradient against its closed form, its limits and what it must refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.names import resolve
from assay.optim.exponentiated_gradient import ExponentiatedGradient


def stepped(weights, gradients, dtype=torch.float64, **options):
    """Return weights (one row) after one step."""
    p = torch.nn.Parameter(torch.tensor([weights], dtype=dtype))
    optimizer = ExponentiatedGradient([p], **options)
    p.grad = torch.tensor([gradients], dtype=dtype)
    optimizer.step()
    return p.detach()[0].tolist()


entries = st.floats(-3, 3).filter(lambda x: abs(x) > 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(entries, st.floats(-50, 50)), min_size=1, max_size=6), st.floats(0, 2), st.floats(0, 1))
def test_a_step_in_python_floats(pairs, lr, decay):
    """log|w| would not change by -lr (sign(w) g + decay), or a sign would."""
    weights, gradients = zip(*pairs, strict=True)
    for w, g, found in zip(weights, gradients, stepped(weights, gradients, lr=lr, weight_decay=decay), strict=True):
        sign = math.copysign(1, w)
        assert found == pytest.approx(w * math.exp(-lr * (sign * g + decay)), rel=1e-12)
        assert math.copysign(1, found) == sign


def test_it_is_mirror_descent():
    """The step would not minimise <g, u> + D(u, w) / lr for the potential sum |u| log|u|, here by its derivative."""
    w, g, lr = -0.7, 0.9, 0.3
    (u,) = stepped([w], [g], lr=lr)
    x = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    sizes = x.abs(), abs(w)
    divergence = sizes[0] * (sizes[0] / sizes[1]).log() - sizes[0] + sizes[1]
    (slope,) = torch.autograd.grad(g * x + divergence / lr, x)
    assert abs(slope.item()) < 1e-12


def test_small_steps_are_gradient_steps_of_the_size():
    """As lr tends to 0 the step would not be -lr |w| g."""
    w, g, lr = [2.0, -0.5], [1.5, -3.0], 1e-6
    moved = [(b - a) / lr for a, b in zip(w, stepped(w, g, lr=lr), strict=True)]
    assert moved == pytest.approx([-abs(a) * b for a, b in zip(w, g, strict=True)], rel=1e-5)


def test_decay_is_an_l1_penalty():
    """Decay would not be the gradient of weight_decay * sum |w|."""
    w = [2.0, -0.5, 0.1]
    penalised = [0.3 + 0.2 * math.copysign(1, x) for x in w]
    assert stepped(w, [0.3] * 3, lr=0.7, weight_decay=0.2) == pytest.approx(stepped(w, penalised, lr=0.7))


def test_zeros_stay_and_underflow_does_not_turn_signs():
    """A weight of 0 would begin to move, or a huge gradient turn a sign."""
    found = stepped([0.0, 1.0, -1.0], [1.0, 1e4, -1e4], dtype=torch.float32, lr=1.0)
    assert found == [0.0, 0.0, -0.0] and math.copysign(1, found[2]) == -1


def test_signs_survive_training():
    """A network would break Dale's law, or not learn although it keeps it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.1], [-0.3]])
    model = torch.nn.Linear(5, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, -0.1, 0.1, 0.1, 0.1]]))
        model.bias.fill_(0.3)
    optimizer = ExponentiatedGradient(model.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    assert model.weight.sign().tolist() == [[1, -1, 1, 1, 1]]
    assert model.weight[0, 1].item() == pytest.approx(-2.0, abs=0.1)
    assert 0 <= model.weight[0, 4].item() < 0.02, "a weight whose best value has the other sign ends near 0"


def test_biases_take_gradient_steps_unless_asked_not_to():
    """A bias of 0 could never learn, or one that is to keep its sign would turn."""
    for min_ndim, expected in ((2, [-0.1, 0.4]), (1, [0.0, 0.5 * math.exp(-0.5)])):
        bias = torch.nn.Parameter(torch.tensor([0.0, 0.5], dtype=torch.float64))
        optimizer = ExponentiatedGradient([bias], lr=0.5, additive_size=0.2, min_ndim=min_ndim)
        bias.grad = torch.ones(2, dtype=torch.float64)
        optimizer.step()
        assert bias.tolist() == pytest.approx(expected)


def test_decay_spares_parameters_that_take_gradient_steps():
    """A bias would be drawn to 0, although decay is of log|w|."""
    bias = torch.nn.Parameter(torch.tensor([0.5, -0.5], dtype=torch.float64))
    optimizer = ExponentiatedGradient([bias], lr=0.5, weight_decay=0.3)
    bias.grad = torch.zeros(2, dtype=torch.float64)
    optimizer.step()
    assert bias.tolist() == [0.5, -0.5]


@pytest.mark.parametrize(("dtype", "gradient"), [(torch.bfloat16, 0.003), (torch.float16, 4e-4)])
def test_gradients_of_zero_mean_leave_half_precision_weights(dtype, gradient):
    """Weights would decay: rounded factors, or products, are more often too small than too large."""
    start = torch.tensor([[1.5, -1.3, 0.7, 0.011]], dtype=dtype)
    p = torch.nn.Parameter(start.clone())
    optimizer = ExponentiatedGradient([p], lr=1.0)
    for k in range(100):
        p.grad = torch.full_like(p, (-1) ** k * gradient) * start.sign()
        optimizer.step()
    torch.testing.assert_close(p.detach(), start, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_a_named_one_and_its_memory():
    """It would not be found by name, or keep more than a step count."""
    p = torch.nn.Parameter(torch.ones(10, 10))
    optimizer = resolve("optim", "exponentiated-gradient(lr=0.5)")([p])
    p.grad = torch.ones(10, 10)
    optimizer.step()
    assert sum(t.nbytes for t in optimizer.state[p].values()) == 4


def test_the_step_compiles_whole_and_once():
    """A graph would break, or a changed rate compile again."""
    torch._dynamo.reset()
    compilations = []

    def counting(graph, inputs):
        compilations.append(graph)
        return graph.forward

    params = [torch.nn.Parameter(torch.ones(n, 2, dtype=torch.float64)) for n in (2, 3)]
    params.append(torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))
    optimizer = ExponentiatedGradient(params, lr=torch.tensor(0.5, dtype=torch.float64))
    step = torch.compile(optimizer.step, backend=counting, fullgraph=True)
    for rate in (0.5, 0.25, 0.125):
        optimizer.param_groups[0]["lr"].fill_(rate)
        for p in params:
            p.grad = torch.ones_like(p)
        step()
    assert len(compilations) == 1
    torch.testing.assert_close(params[0].detach(), torch.full((2, 2), math.exp(-0.875), dtype=torch.float64))
    torch.testing.assert_close(params[2].detach(), torch.full((2,), 1 - 0.0875, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a finite number of at least 0; got -1.0"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number"),
        ({"min_ndim": -1}, "min_ndim must be an integer of at least 0; got -1"),
        ({"additive_size": 0.0}, "additive_size must be a finite number above 0; got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    """A bad option would train as something else."""
    with pytest.raises(InvalidInput, match=message):
        ExponentiatedGradient([torch.nn.Parameter(torch.ones(2, 2))], **options)


def test_complex_and_sparse_are_refused():
    """A complex weight has no sign; a sparse gradient would be made dense behind the user's back."""
    with pytest.raises(InvalidInput, match="needs real parameters"):
        ExponentiatedGradient([torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = ExponentiatedGradient([p])
    p.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(InvalidInput, match="needs dense gradients"):
        optimizer.step()


def test_nan_gradients_spoil_their_weight_only():
    """As in torch's SGD: neither the run nor other weights would be touched."""
    found = stepped([1.0, 2.0], [math.nan, 0.0])
    assert math.isnan(found[0]) and found[1] == 2.0
