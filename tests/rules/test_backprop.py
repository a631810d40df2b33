"""Backpropagation as a rule is the plain loop, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.backprop import Backprop


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 1, 8, 8, generator=_generator(1)), torch.arange(16) % 3


@pytest.mark.parametrize("build", [MLP, CNN])
def test_steps_are_bit_equal_to_a_plain_loop(build: type) -> None:
    """The rule would add, scale or reorder anything beside `loss.backward()`."""
    x, y = _images()
    rule, plain = Backprop(build((1, 8, 8), 3, generator=_generator())), build((1, 8, 8), 3, generator=_generator())
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=1e-2) for m in (rule, plain))
    for _ in range(3):
        logs = rule.step(x, y, ours)
        theirs.zero_grad()
        loss = F.cross_entropy(plain(x), y)
        loss.backward()
        theirs.step()
        assert torch.equal(logs["loss"], loss.detach())
    assert all(
        torch.equal(a, b) for a, b in zip(rule.model.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_other_losses_and_their_parameters() -> None:
    """A loss would be ignored, or the parameters of a learned loss not be trained."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
            return self.scale * scores.square().mean()

    rule = Backprop(nn.Linear(4, 3), Scaled())
    logs = rule.backward(torch.ones(2, 4), torch.zeros(2))
    assert rule.loss.scale.grad.item() == pytest.approx(logs["loss"].item() / 2)
    assert rule.loss.scale in set(rule.trained_parameters())


def test_frozen_layers_are_not_trained() -> None:
    """A layer that the user froze would be listed among the trained parameters."""
    model = MLP((6,), 3)
    model.block1.requires_grad_(False)
    rule = Backprop(model)
    assert {id(p) for p in rule.trained_parameters()} == {
        id(p) for part in (model.block2, model.head) for p in part.parameters()
    }


@pytest.mark.parametrize("build", [MLP, CNN])
def test_last_features_are_the_heads_input(build: type) -> None:
    """Probes would look at features that the head does not read."""
    rule = Backprop(build((1, 8, 8), 3, generator=_generator()))
    x, _ = _images()
    features = rule.features(x)
    assert next(iter(features)) == "block1"
    torch.testing.assert_close(rule.head()(list(features.values())[-1]), rule.predict(x))


def test_features_of_a_model_that_is_no_sequential() -> None:
    """A user's own module would have no features, or keep a hook."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.classify = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.classify(torch.tanh(self.body(x)))

    rule, x = Backprop(Net()), torch.randn(2, 4, generator=_generator())
    torch.testing.assert_close(rule.features(x), {"features": torch.tanh(rule.model.body(x)).detach()})
    assert not rule.model.classify._forward_pre_hooks
    with pytest.raises(InvalidInput, match=r"no nn\.Linear"):
        Backprop(nn.Conv2d(1, 1, 1)).features(torch.ones(1, 1, 2, 2))
