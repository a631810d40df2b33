"""The curvature products against dense second derivatives, Jacobians written out, and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from assay.errors import InvalidInput
from assay.probes import _linearised
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.view import View

CLASSES = 3


class _Attention(nn.Module):
    """Embedding, attention, layer norm and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, CLASSES)
        self.qkv, self.first, self.second = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(self.embed(tokens))).split(4, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(self.second(F.gelu(self.first(h))).mean(1))


class _Cube(torch.autograd.Function):
    """An operation that has no forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


class _Cubic(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _Cube.apply(super().forward(x))


def _seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = 0.7 * torch.randn(tensor.shape, generator=generator).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_var.data = 1 + module.running_var.abs()
    return model


def _mlp() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, CLASSES))
    model[0].bias.requires_grad_(False)
    return _seeded(model)


def _cnn() -> nn.Module:
    layers = (nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2))
    return _seeded(nn.Sequential(*layers, nn.Softplus(), nn.Flatten(), nn.Linear(18, CLASSES)))


def _inputs(shape: tuple[int, ...], samples: int = 10) -> Tensor:
    return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (_mlp(), _inputs((4,))),
    "cnn": lambda: (_cnn(), _inputs((1, 8, 8))),
    "attention": lambda: (_seeded(_Attention()), torch.randint(5, (10, 4), generator=torch.Generator().manual_seed(1))),
}


def _targets(samples: int) -> Tensor:
    return torch.arange(samples) % CLASSES


def _dense(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> Tensor:
    """The Hessian by nested reverse and forward mode over one flat vector, in eval mode."""
    model = copy.deepcopy(model).eval()
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def of(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in named.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        return loss(functional_call(model, values, (x,)), y)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(of, torch.cat([p.flatten() for p in named.values()]))


def _jacobians(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, K) and their Jacobians (N, K, P)."""
    model = copy.deepcopy(model).eval()
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def scores(values: dict[str, Tensor]) -> Tensor:
        return functional_call(model, values, (x,))

    parts = jacrev(scores)(named)
    return scores(named), torch.cat([j.flatten(2) for j in parts.values()], dim=2)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_hessian_is_that_of_nested_derivatives(name: str) -> None:
    """Products would be of another matrix: a wrong mode, a frozen or doubled weight, a lost term of an operation."""
    model, x = NETWORKS[name]()
    y = _targets(len(x))
    expected = _dense(model, x, y)
    torch.testing.assert_close(CurvatureMatrix(model.train(), None, (x, y)).dense(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_gauss_newton_and_fisher_are_their_sums_over_samples(name: str) -> None:
    """G, F or the empirical Fisher would miss a factor, a sample or the coupling between scores."""
    model, x = NETWORKS[name]()
    y = _targets(len(x))
    f, J = _jacobians(model, x)
    p = f.softmax(1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    g = torch.einsum("nkp,nk->np", J, p - F.one_hot(y, CLASSES))
    expected = {"ggn": torch.einsum("nkp,nkl,nlq->pq", J, S, J) / len(x), "empirical-fisher": g.T @ g / len(x)}
    expected["fisher"] = expected["ggn"]  # equal under cross-entropy
    for matrix, value in expected.items():
        found = CurvatureMatrix(model, None, (x, y), matrix=matrix, batch_size=4).dense()  # type: ignore[arg-type]
        torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-10)


def test_fisher_asks_the_network_and_gauss_newton_the_loss() -> None:
    """Under label smoothing or squared loss the two differ; one would be taken for the other."""
    model, x = NETWORKS["mlp"]()
    f, J = _jacobians(model, x)
    y = F.one_hot(_targets(len(x)), CLASSES).double()
    ggn = CurvatureMatrix(model, F.mse_loss, (x, y), matrix="ggn").dense()
    torch.testing.assert_close(ggn, 2 / CLASSES * torch.einsum("nkp,nkq->pq", J, J) / len(x))
    p = f.softmax(1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = CurvatureMatrix(model, F.mse_loss, (x, y), matrix="fisher").dense()
    torch.testing.assert_close(fisher, torch.einsum("nkp,nkl,nlq->pq", J, S, J) / len(x))


def test_gauss_newton_of_a_linear_model_is_its_hessian() -> None:
    """The rest R of H = G + R vanishes where the scores are linear in the parameters."""
    model, x, y = _seeded(nn.Linear(4, CLASSES)), _inputs((4,)), _targets(10)
    h, g = (CurvatureMatrix(model, None, (x, y), matrix=m).dense() for m in ("hessian", "ggn"))  # type: ignore[arg-type]
    torch.testing.assert_close(g, h)
    assert torch.linalg.matrix_rank(g) <= 10 * (CLASSES - 1)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_operations_without_a_forward_derivative_fall_back(matrix: str) -> None:
    """A network with its own autograd function would be refused, or measured wrongly."""
    model, x, y = _seeded(nn.Sequential(_Cubic(4, 3), nn.Linear(3, CLASSES))), _inputs((4,)), _targets(10)

    class Same(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 3

    twin = nn.Sequential(Same(4, 3), nn.Linear(3, CLASSES)).double()
    twin.load_state_dict(model.state_dict())
    found = CurvatureMatrix(model, None, (x, y), matrix=matrix)  # type: ignore[arg-type]
    expected = CurvatureMatrix(twin, None, (x, y), matrix=matrix).dense()  # type: ignore[arg-type]
    torch.testing.assert_close(found.dense(), expected)
    v = torch.randn(found.shape[0], 1, dtype=torch.float64)
    torch.testing.assert_close(found @ v[:, 0], expected @ v[:, 0])


def test_a_tape_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that misses something would go unnoticed: here every played value is off by a tenth."""
    model, x = NETWORKS["mlp"]()
    close = _linearised.Tape.close

    def wrong(self: Any, outputs: Any) -> Callable[..., Any]:
        play = close(self, outputs)
        return lambda *inputs: tuple(1.1 * out for out in play(*inputs))

    monkeypatch.setattr(_linearised.Tape, "close", wrong)
    expected = _dense(model, x, _targets(10))
    torch.testing.assert_close(CurvatureMatrix(model, None, (x, _targets(10))).dense(), expected)


def test_batches_and_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uneven batches would weigh alike, or cutting for the cache would lose or repeat samples."""
    model, x = NETWORKS["cnn"]()
    x = torch.cat([x] * 6 + [2 * x[:3]])
    y = _targets(len(x))
    expected = _dense(model, x, y)
    for batch_size in (1, 40, 63):
        torch.testing.assert_close(CurvatureMatrix(model, None, (x, y), batch_size=batch_size).dense(), expected)
    monkeypatch.setattr("assay.probes._pieces._CACHE", 1)
    cut = CurvatureMatrix(model, None, (x, y))
    assert len(cut._products) == 4 and cut.samples == 63
    torch.testing.assert_close(cut.dense(), expected)


def test_a_loss_that_couples_samples_keeps_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class weights make the mean loss of a batch another thing than the mean over its pieces."""
    model, x = NETWORKS["mlp"]()
    x = torch.cat([x] * 5)
    y = torch.arange(50) // 18
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64))
    monkeypatch.setattr("assay.probes._pieces._CACHE", 1)
    torch.testing.assert_close(CurvatureMatrix(model, weighted, (x, y)).dense(), _dense(model, x, y, weighted))


def test_a_part_of_the_parameters_is_a_diagonal_block() -> None:
    """A layer's own matrix would be in another order, or hold other layers' parameters."""
    model, x = NETWORKS["mlp"]()
    y = _targets(len(x))
    whole = CurvatureMatrix(model, None, (x, y))
    for wanted in ("4", ["2.weight", "4.bias"]):
        part = CurvatureMatrix(model, None, (x, y), parameters=wanted)
        rows = torch.cat([torch.arange(*whole.slices[name].indices(whole.shape[0])) for name in part.names])
        torch.testing.assert_close(part.dense(), whole.dense()[rows][:, rows])


def test_it_belongs_to_the_moment_and_leaves_no_trace() -> None:
    """Training on would change a matrix that was taken before, or taking it would change the network."""
    model, x = NETWORKS["mlp"]()
    model.train()
    before = copy.deepcopy(model.state_dict())
    matrix = CurvatureMatrix(View(model), None, (x, _targets(10)))
    expected = matrix.dense()
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    torch.testing.assert_close(matrix.dense(), expected)


def test_vectors_come_back_as_they_were_given() -> None:
    """One vector, a block, or a dictionary of tensors would change order or shape on the way."""
    model, x = NETWORKS["mlp"]()
    matrix = CurvatureMatrix(model, None, (x, _targets(10)), retain=False)
    P = matrix.shape[0]
    block = torch.randn(P, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(matrix @ block, matrix.dense() @ block)
    torch.testing.assert_close(matrix @ block[:, 0], (matrix @ block)[:, 0])
    assert torch.equal(matrix.flatten(matrix.unflatten(block[:, 1])), block[:, 1])
    assert sorted(matrix.unflatten(block[:, 0])) == sorted(n for n, p in model.named_parameters() if p.requires_grad)


def test_a_parameter_that_the_loss_does_not_reach_has_zero_rows() -> None:
    """A layer that never runs would raise, or leave what was in memory."""

    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare, self.used = nn.Linear(2, 2), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = _seeded(Spare())
    for matrix in ("hessian", "ggn"):
        found = CurvatureMatrix(model, None, (_inputs((4,)), _targets(10)), matrix=matrix).dense()  # type: ignore[arg-type]
        assert torch.equal(found[:6], torch.zeros(6, found.shape[0], dtype=torch.float64)) and found[6:, 6:].any()


def test_float32_parameters_can_be_measured_in_float64() -> None:
    """The cast would miss the inputs or a buffer, and raise; or products would stay in float32."""
    model, x = NETWORKS["mlp"]()
    expected = _dense(model, x.float().double(), _targets(10))
    found = CurvatureMatrix(model.float(), None, (x.float(), _targets(10)), dtype=torch.float64).dense()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_bad_input_is_refused_in_one_line() -> None:
    """A misspelt layer, a network without trainable parameters, or a vector of another length would pass silently."""
    model, data = _mlp(), (_inputs((4,)), _targets(10))
    cases: list[Callable[[], Any]] = [
        lambda: CurvatureMatrix(model, None, data, matrix="jacobian"),  # type: ignore[arg-type]
        lambda: CurvatureMatrix(model, None, data, parameters="5"),
        lambda: CurvatureMatrix(model, None, data, parameters=["0.bias"]),  # frozen
        lambda: CurvatureMatrix(copy.deepcopy(model).requires_grad_(False), None, data),
        lambda: CurvatureMatrix(model, None, data) @ torch.zeros(3),
    ]
    for case in cases:
        with pytest.raises(InvalidInput) as error:
            case()
        assert "\n" not in str(error.value)


def test_a_broken_network_shows_in_the_loss() -> None:
    """A NaN weight would only be noticed after a whole Lanczos run."""
    model, x = NETWORKS["mlp"]()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    assert not torch.isfinite(torch.tensor(CurvatureMatrix(model, None, (x, _targets(10))).loss))
