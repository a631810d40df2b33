"""What all first-order optimizers get from their base: lists cut and grouped, counts, one compiled graph, clear errors."""

from __future__ import annotations

import pytest
import torch

from assay.errors import InvalidInput
from assay.optim._stepping import BLOCK, MultiTensorOptimizer, norms, per_tensor
from assay.optim.diffgrad import DiffGrad
from assay.optim.lamb import LAMB
from assay.optim.lars import LARS
from assay.optim.spam import SPAM
from assay.optim.stable_spam import StableSPAM


def generator(seed=0):
    """A generator of a test's own."""
    return torch.Generator().manual_seed(seed)


class Momentum(MultiTensorOptimizer):
    """The example of the module's head; `calls` are the sizes of the lists it was given."""

    moments = ("momentum",)

    def __init__(self, params, lr=0.1, beta=0.5):
        self.calls = []
        super().__init__(params, {"lr": lr, "beta": beta})

    def _kind(self, parameter, group):
        return parameter.ndim == 0

    def _update(self, group, params, grads, steps, *moments):
        self.calls.append([tuple(p.shape) for p in params])
        torch._foreach_lerp_(moments[0], grads, 1 - group["beta"])
        sizes = -group["lr"] / (1 - group["beta"] ** steps)
        torch._foreach_add_(params, torch._foreach_mul(moments[0], per_tensor(sizes, params)))


def filled(*shapes, dtype=torch.float32):
    """Parameters with values and gradients of their own."""
    own = generator()
    params = [torch.nn.Parameter(torch.randn(shape, generator=own).to(dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=own).to(dtype)
    return params


def test_lists_hold_one_kind_of_tensor_and_end_where_a_cache_does():
    """Types would be mixed in one call, kinds not kept apart, or large tensors swept together."""
    big, small = filled((BLOCK,), (BLOCK // 2, 2), (3,), (2, 2), ()), filled((4,), (5,), dtype=torch.float64)
    optimizer = Momentum([*big[:3], *small, *big[3:]])
    optimizer.step()
    assert optimizer.calls == [[(BLOCK,)], [(BLOCK // 2, 2)], [(3,), (2, 2)], [(4,), (5,)], [()]]


def test_each_tensor_steps_by_its_own_count():
    """A tensor that had no gradient for a while would get the bias correction of the others."""
    both, late = filled((3,), (3,))
    optimizer = Momentum([both, late], lr=0.1, beta=0.5)
    first, start = both.detach().clone(), late.detach().clone()
    gradient, late.grad = late.grad, None
    optimizer.step()
    torch.testing.assert_close(both.detach(), first - 0.1 * both.grad)  # corrected, a first step is the gradient
    torch.testing.assert_close(late.detach(), start, rtol=0, atol=0)
    late.grad = gradient
    optimizer.step()
    torch.testing.assert_close(both.detach(), first - 0.2 * both.grad)
    torch.testing.assert_close(late.detach(), start - 0.1 * gradient)
    assert [optimizer.state[p]["step"].item() for p in (both, late)] == [2, 1]


def test_complex_tensors_are_pairs_of_real_ones():
    """Real and imaginary parts would be mixed, or the step not reach the parameter."""
    (p,) = filled((3, 2), dtype=torch.complex64)
    p.grad = torch.complex(p.grad.real, torch.ones(3, 2))
    pair = torch.nn.Parameter(torch.view_as_real(p.detach().clone()))
    pair.grad = torch.view_as_real(p.grad).clone()
    for parameter in (p, pair):
        optimizer = DiffGrad([parameter], lr=0.1)
        optimizer.step()
        optimizer.step()
    assert torch.equal(torch.view_as_real(p.detach()), pair.detach())
    assert p.detach().imag.ne(0).all()


def test_gradients_are_left_as_they_are():
    """Weight decay or a transform would leak into the gradients, which may be accumulated further."""
    for kind in (DiffGrad, LAMB, LARS):
        (p,) = filled((4, 3))
        before = p.grad.clone()
        kind([p], lr=0.1, weight_decay=0.5).step()
        assert torch.equal(p.grad, before), kind


@pytest.mark.parametrize("kind", [DiffGrad, LAMB, LARS])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_step_is_one_graph_that_is_not_compiled_again(kind, as_tensor):
    """The step would break the graph, or steps and schedules would compile it again."""
    torch._dynamo.reset()
    compiled, plain = filled((4, 3), (3,), ()), filled((4, 3), (3,), ())
    optimizer, twin = kind(compiled, lr=torch.tensor(0.1) if as_tensor else 0.1), kind(plain, lr=0.1)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    step = torch.compile(optimizer.step, fullgraph=True, backend=count)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.8) for o in (optimizer, twin)]
    compilations = []
    for _ in range(4):
        step()
        twin.step()
        for schedule in schedules:
            schedule.step()
        compilations.append(len(graphs))
    assert compilations == ([1, 1, 1, 1] if as_tensor else [1, 2, 2, 2])
    for a, b in zip(compiled, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("kind", [DiffGrad, LAMB, LARS, SPAM, StableSPAM])
def test_a_step_reads_nothing_back_from_its_device(kind, capturable):
    """Each step would wait for an accelerator (meta tensors have nothing to read), or counts be on the wrong device."""
    params = [torch.nn.Parameter(p.to("meta")) for p in filled((4, 3), (3,))]
    optimizer = kind([{"params": params, "capturable": capturable}], lr=0.1, weight_decay=0.1)
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer.step()
    devices = {optimizer.state[p]["step"].device.type for p in params}
    assert devices == {"meta" if capturable else "cpu"}


@pytest.mark.parametrize("kind", [DiffGrad, LAMB, LARS, SPAM, StableSPAM])
def test_a_rate_of_shape_one_is_a_number(kind):
    """Torch's optimizers take such a rate; here it would raise torch's error in the step, or broadcast."""
    options = {"weight_decay": 0.1} | ({"decoupled": True} if kind is DiffGrad else {})
    ours, theirs = filled((4, 3), ()), filled((4, 3), ())
    rate = torch.tensor([0.1])
    optimizer = kind(ours, lr=rate, **options)
    rate.mul_(2)  # a rate that is kept as a tensor is changed in place
    optimizer.step()
    kind(theirs, lr=0.2, **options).step()
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(InvalidInput, match=r"lr must be a number or a tensor of one element; got .*\(2,\)"):
        kind(theirs, lr=torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [DiffGrad, LAMB, LARS])
def test_other_types_step_as_float32_does(kind, dtype):
    """Scalars such as norms would overflow or be rounded in a narrow type, or a result change its type."""
    ours, theirs = filled((40, 30), (7,), dtype=dtype), filled((40, 30), (7,))
    for p, q in zip(ours, theirs, strict=True):
        with torch.no_grad():
            q.copy_(p)
        q.grad.copy_(p.grad)
    for params in (ours, theirs):
        kind(params, lr=0.05).step()
    for p, q in zip(ours, theirs, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p.detach().float(), q.detach(), rtol=2e-2, atol=2e-2)


def test_a_norm_of_many_half_precision_entries_is_finite():
    """A norm in float16 overflows from 65504 on."""
    tensors = [torch.full((1000, 100), 300.0, dtype=torch.float16), torch.zeros(0, dtype=torch.float16)]
    torch.testing.assert_close(norms(tensors), torch.tensor([3000 * 1000**0.5, 0.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [DiffGrad, LAMB, LARS])
def test_bad_options_are_refused_in_one_line(kind):
    """A typo in an option would train silently with nonsense, or leave a half-added group behind."""
    (p,) = filled((2, 2))
    rates = {"momentum": 1.0} if kind is LARS else {"betas": (0.9, 1.0)}
    for options in ({"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}, rates):
        with pytest.raises(InvalidInput, match=f"{next(iter(options))} must be .* got"):
            kind([p], **options)
    with pytest.raises(ValueError, match="empty parameter list"):
        kind([])
    optimizer = kind([p])
    with pytest.raises(InvalidInput, match="lr must be"):
        optimizer.add_param_group({"params": filled((2,)), "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused():
    """A sparse gradient would be read as a dense one."""
    layer = torch.nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    for kind in (DiffGrad, LAMB, LARS):
        with pytest.raises(InvalidInput, match=f"{kind.__name__} needs dense gradients.*sparse_coo"):
            kind(layer.parameters()).step()


def test_the_scaler_of_mixed_precision_skips_what_overflows_and_unscales_the_rest():
    """Scaled gradients would reach the step, or an overflow be taken."""
    for kind in (DiffGrad, LAMB, LARS, SPAM, StableSPAM):
        (scaled,), (plain,) = filled((3, 2)), filled((3, 2))
        optimizer, scaler = kind([scaled], lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
        start = scaled.detach().clone()
        scaler.scale(torch.ones(()))
        scaled.grad = torch.full((3, 2), float("inf"))
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(scaled.detach(), start), kind
        scaled.grad = scaler.scale(plain.grad.clone())
        scaler.step(optimizer)
        kind([plain], lr=0.1).step()
        torch.testing.assert_close(scaled, plain)


def test_a_nan_stays_in_its_tensor():
    """One bad gradient would spoil other tensors of the list."""
    for kind in (DiffGrad, LAMB, LARS):
        bad, good = filled((3, 2), (3, 2))
        bad.grad[0, 0] = float("nan")
        kind([bad, good]).step()
        assert bad.isnan().any(), kind
        assert good.isfinite().all(), kind


def test_an_optimizer_without_an_update_says_so():
    """A subclass that forgot its update would do nothing."""
    with pytest.raises(NotImplementedError, match="MultiTensorOptimizer"):
        MultiTensorOptimizer(filled((2,)), {"lr": 0.1}).step()
