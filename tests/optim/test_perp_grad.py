"""PerpGrad against the equations in float64, its invariants, and the limits in which it must do nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.optim.perp_grad import PerpGrad, perpendicular


def _vectors(seed: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))  # type: ignore[return-value]


def _by_hand(weight: Tensor, gradient: Tensor, rescale: bool) -> Tensor:
    """The paper's two equations with Python sums."""
    w, g = weight.flatten().tolist(), gradient.flatten().tolist()
    share = math.fsum(a * b for a, b in zip(w, g, strict=True)) / (math.fsum(a * a for a in w) + 1e-30)
    projected = [b - share * a for a, b in zip(w, g, strict=True)]
    if rescale:
        before, after = (math.sqrt(math.fsum(v * v for v in x)) for x in (g, projected))
        projected = [v * before / (after + 1e-30) for v in projected]
    return torch.tensor(projected, dtype=torch.float64).view(gradient.shape)


def _parameter(values: list[float], gradient: list[float]) -> nn.Parameter:
    parameter = nn.Parameter(torch.tensor(values))
    parameter.grad = torch.tensor(gradient)
    return parameter


@given(seed=st.integers(0, 10**6), size=st.integers(2, 60), rescale=st.booleans())
@settings(max_examples=50, deadline=None)
def test_equals_the_equations_by_hand(seed: int, size: int, rescale: bool) -> None:
    """The projection or the rescaling would not be the paper's."""
    w, g = _vectors(seed, size, torch.float64)
    torch.testing.assert_close(perpendicular(w, g, rescale), _by_hand(w, g, rescale), rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 10**6), size=st.integers(3, 60), scale=st.floats(1e-6, 1e6))
@settings(max_examples=50, deadline=None)
def test_is_orthogonal_keeps_the_norm_and_is_idempotent(seed: int, size: int, scale: float) -> None:
    """The step would still move along the weights, change its length, or change when projected again."""
    w, g = _vectors(seed, size)
    g = g * scale
    p = perpendicular(w, g)
    assert abs(float(p.double() @ w.double())) <= 1e-5 * float(p.norm() * w.norm())
    torch.testing.assert_close(p.norm(), g.norm(), rtol=1e-5, atol=0)
    torch.testing.assert_close(perpendicular(w, p), p, rtol=1e-4, atol=1e-5 * float(p.norm()))


@given(seed=st.integers(0, 10**6), factor=st.sampled_from([2.0**-10, 0.5, 4.0, 2.0**16]))
@settings(max_examples=30, deadline=None)
def test_is_homogeneous_in_the_gradient(seed: int, factor: float) -> None:
    """Loss scaling for mixed precision would change the direction of the step."""
    w, g = _vectors(seed, 20)
    torch.testing.assert_close(perpendicular(w, g * factor), perpendicular(w, g) * factor, rtol=1e-6, atol=0)


def test_tensor_granularity_projects_each_tensor_biases_included() -> None:
    """The default would differ from the official code, which projects every parameter tensor by itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    PerpGrad(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    expected = [p.detach().double() - 0.1 * _by_hand(p.detach(), p.grad, True) for p in model.parameters()]  # type: ignore[arg-type]
    optimizer.step()
    for parameter, weight in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rescale", [True, False])
def test_global_granularity_projects_the_whole_vector(rescale: bool) -> None:
    """The paper's equation for the whole parameter vector, over all groups, would not be what "global" does."""
    torch.manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((3, 2), (4,), (1,))]
    optimizer = torch.optim.SGD([{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:]}], lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    w, g = (torch.cat([t.detach().flatten() for t in ts]) for ts in (parameters, [p.grad for p in parameters]))
    PerpGrad(optimizer, granularity="global", rescale=rescale).project()
    projected = torch.cat([p.grad.flatten() for p in parameters]).double()  # type: ignore[union-attr]
    torch.testing.assert_close(projected, _by_hand(w, g, rescale), rtol=1e-5, atol=1e-6)


def test_sgd_grows_the_weights_only_to_second_order() -> None:
    """Plain SGD on projected gradients must satisfy ||w'||^2 = ||w||^2 + lr^2 ||g||^2 exactly, tensor by tensor."""
    w, g = _vectors(3, 50, torch.float64)
    weight = nn.Parameter(w.clone())
    weight.grad = g.clone()
    optimizer = torch.optim.SGD([weight], lr=0.3)
    PerpGrad(optimizer)
    optimizer.step()
    grown = weight.detach().square().sum()
    torch.testing.assert_close(grown, w.square().sum() + 0.09 * g.square().sum(), rtol=1e-12, atol=0)


def test_does_nothing_to_scale_invariant_weights() -> None:
    """Weights before a normalisation have gradients that are orthogonal already (Euler); they must stay as they are."""
    torch.manual_seed(2)
    layer, norm = nn.Linear(6, 5, bias=False).double(), nn.BatchNorm1d(5, eps=1e-12, affine=False).double()
    (norm(layer(torch.randn(16, 6, dtype=torch.float64))).pow(3) * torch.randn(16, 5).double()).sum().backward()
    before = layer.weight.grad.clone()  # type: ignore[union-attr]
    PerpGrad(torch.optim.SGD(layer.parameters(), lr=0.1)).project()
    torch.testing.assert_close(layer.weight.grad, before, rtol=1e-8, atol=1e-9)


def test_removes_exactly_the_direction_that_scales_the_logits() -> None:
    """For a bias-free ReLU net the projected gradient must not change the loss along any layer's own weights."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)).double()
    nn.functional.cross_entropy(net(torch.randn(10, 6).double()), torch.randint(0, 4, (10,))).backward()
    radial = [float((p.grad * p.detach()).sum()) for p in net.parameters()]  # type: ignore[operator]
    assert abs(radial[0] - radial[1]) < 1e-12 and abs(radial[0]) > 1e-3  # homogeneity: one slope for both layers
    PerpGrad(torch.optim.SGD(net.parameters(), lr=0.1)).project()
    assert all(abs(float((p.grad * p.detach()).sum())) < 1e-12 for p in net.parameters())  # type: ignore[operator]


def test_leaves_scalars_and_zero_weights_alone() -> None:
    """A temperature or a one-element gain would lose its whole gradient; zero-initialised biases must train."""
    scalar, zero = _parameter([2.0], [3.0]), _parameter([0.0, 0.0], [1.0, 2.0])
    PerpGrad(torch.optim.SGD([scalar, zero], lr=0.1)).project()
    assert scalar.grad.tolist() == [3.0] and zero.grad.tolist() == [1.0, 2.0]  # type: ignore[union-attr]


@given(seed=st.integers(0, 10**6), factor=st.floats(-1e3, 1e3))
@settings(max_examples=50, deadline=None)
def test_does_not_blow_up_rounding(seed: int, factor: float) -> None:
    """A gradient along the weights leaves only rounding noise, which rescaling would make a full step of."""
    w, _ = _vectors(seed, 40)
    g = w * factor
    assert float(perpendicular(w, g).norm()) <= 1e-5 * float(g.norm())


def test_rescales_small_but_real_tangents() -> None:
    """The guard against rounding would also stop the method where gradients are nearly aligned, which is where it matters."""
    p = perpendicular(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-4]))
    torch.testing.assert_close(p, torch.tensor([0.0, 1.0]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projects_half_precision_in_float32(dtype: torch.dtype) -> None:
    """Sums of squares in half precision would overflow (float16) or keep two digits (bfloat16)."""
    w, g = (300 * v for v in _vectors(4, 4000, dtype))
    p = perpendicular(w, g)
    assert p.dtype == dtype and torch.isfinite(p).all()
    cosine = float(p.double() @ w.double()) / float(p.double().norm() * w.double().norm())
    assert abs(cosine) < 2e-4


def test_complex_parameters_are_real_vectors() -> None:
    """The radial direction of complex weights would be taken with the wrong inner product."""
    w, g = (torch.complex(*_vectors(seed, 9, torch.float64)) for seed in (5, 6))
    p = perpendicular(w, g)
    assert abs(float((p.conj() * w).sum().real)) < 1e-12
    torch.testing.assert_close(p.abs().square().sum(), g.abs().square().sum())


def test_sparse_gradients_are_refused_before_anything_changes() -> None:
    """A sparse gradient would be turned dense silently, or half of the gradients projected before an error."""
    dense, table = nn.Linear(3, 2), nn.Embedding(5, 3, sparse=True)
    dense(table(torch.tensor([1, 2]))).sum().backward()
    before = dense.weight.grad.clone()  # type: ignore[union-attr]
    optimizer = torch.optim.SGD([*dense.parameters(), *table.parameters()], lr=0.1)
    PerpGrad(optimizer)
    with pytest.raises(ValueError, match=r"dense gradients.*\(5, 3\).*torch\.sparse_coo"):
        optimizer.step()
    assert torch.equal(dense.weight.grad, before)  # type: ignore[arg-type]


def test_lbfgs_sees_projected_gradients_at_every_evaluation() -> None:
    """An optimizer that evaluates its closure often would use plain gradients after the first."""
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = torch.optim.LBFGS([weight], lr=0.1, max_iter=5)
    PerpGrad(optimizer, rescale=False)
    seen = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight * torch.tensor([1.0, 2.0])).square().sum()
        loss.backward()
        seen.append(weight.detach().clone())
        return loss

    optimizer.step(closure)
    assert len(seen) > 2
    # all of L-BFGS's first moves are tangent at the start, so the second evaluation is too
    step = seen[1] - seen[0]
    assert abs(float(step @ seen[0])) < 1e-12 and float(step.norm()) > 0


def test_state_dict_is_the_plain_optimizers() -> None:
    """A checkpoint written with the transform could not be read without it."""
    weight = _parameter([1.0, 2.0], [0.5, -1.0])
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    with PerpGrad(optimizer):
        optimizer.step()
    plain = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=0.1)
    plain.load_state_dict(optimizer.state_dict())
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    assert torch.equal(plain.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_works_with_gradient_scaling() -> None:
    """The step under a loss scaler would differ from the step without."""
    steps = []
    for scale in (1.0, 2.0**12):
        torch.manual_seed(4)
        layer = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        PerpGrad(optimizer)
        scaler.scale(layer(torch.ones(2, 4)).square().sum()).backward()
        scaler.step(optimizer)
        steps.append(layer.weight.detach().clone())
    torch.testing.assert_close(*steps, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{"granularity": "layer"}, {"eps": 0.0}, {"eps": float("nan")}])
def test_refuses_unknown_options(options: dict[str, object]) -> None:
    """A misspelt option would silently mean the default."""
    with pytest.raises(ValueError, match=next(iter(options))):
        PerpGrad(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), **options)  # type: ignore[arg-type]
