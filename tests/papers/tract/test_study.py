"""What the study of tract adds of its own: paired arms, fair grids, and the control of whitened inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from assay.lab.plan import candidates
from assay.nn.first_layers import tract_gradient
from assay.papers.tract.study import study
from assay.papers.tract.training import Whitened, input_moment, network, train
from assay.streams import Streams

TINY = {
    "data": "digits(train=100, validation=60, test=100)",
    "model": "cnn",
    "kernel": 3,
    "optimizer": "sgd(momentum=0.9)",
    "epochs": 1,
    "batch_size": 50,
    "lr": 0.1,
}


def test_with_a_rate_of_zero_all_arms_are_the_same_function() -> None:
    """Arms would start from other weights: whitening must keep the initial function."""
    losses = [
        train(Streams("t", 0), first=first, **{**TINY, "lr": 0.0}).metrics["test_loss"]  # type: ignore[arg-type]
        for first in ("plain", "tract", "whitened")
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_tuning_sees_no_test_data() -> None:
    """Learning rates would be chosen on test labels."""
    record = train(Streams("t", 0), first="tract", validation_only=True, **TINY)  # type: ignore[arg-type]
    assert set(record.metrics) == {"validation_score"}


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_the_moment_is_that_of_the_layers_inputs(kind: str) -> None:
    """The control would whiten by something else than what the layer sees; the layer's own outputs tell."""
    x = torch.randn(6, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    layer = next(m for m in network(kind, (2, 7, 8), 10, kernel=3) if hasattr(m, "weight"))
    with torch.no_grad():
        layer.bias.zero_()  # type: ignore[union-attr, operator]
        z: Tensor = layer(x.flatten(1) if kind == "mlp" else x)
        moment, weight = input_moment(layer, x), layer.weight.flatten(1)  # type: ignore[union-attr, operator]
    rows = z if kind == "mlp" else z.movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(weight @ moment @ weight.T, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_sgd_on_whitened_inputs_is_tract_with_a_fixed_moment() -> None:
    """The control would not differ from TrAct in the batch's moment alone."""
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(9, 4, generator=generator), torch.randn(9, 3, generator=generator)
    layer = nn.Linear(4, 3, bias=False)
    before = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Whitened(x.T @ x / 9, 0.3))
    torch.testing.assert_close(layer.weight.detach(), before)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(x).backward(g)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - 0.5 * tract_gradient(x, g, 0.3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_differ_in_what_they_are_named_for_only(scale: str) -> None:
    """An arm would win by other data, epochs or a longer grid."""
    arms = study(scale).arms
    allowed = {
        "tract": {"first"},
        "whitened": {"first"},
        "baseline-longer": {"epochs"},
        "first-rate-x3": {"first_lr_factor"},
        "first-rate-x0.3": {"first_lr_factor"},
        "baseline": set(),
    }
    for name, arm in arms.items():
        task, _, kind = name.rpartition("/")
        base, own = dict(arms[f"{task}/baseline"].arguments), dict(arm.arguments)  # type: ignore[attr-defined]
        assert {key for key in own.keys() | base.keys() if own.get(key) != base.get(key)} == allowed[kind]
        assert [p.overrides for p in candidates(arm)] == [p.overrides for p in candidates(arms[f"{task}/baseline"])]
    longer = arms["cifar10/sgd/baseline-longer"].arguments["epochs"]  # type: ignore[attr-defined]
    assert longer == 1.25 * arms["cifar10/sgd/tract"].arguments["epochs"]  # type: ignore[attr-defined]


def test_unknown_first_layers_are_refused() -> None:
    """A misspelt arm would silently train the plain layer."""
    with pytest.raises(ValueError, match="plain, tract, whitened; got 'trakt'"):
        train(Streams("t", 0), first="trakt", **TINY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'cnn' or 'mlp'"):
        network("vit", (1, 8, 8), 10)
