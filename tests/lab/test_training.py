"""One trial: what the engine promises about streams, budgets, checkpoints, tuning and divergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.data.batching import batches
from assay.data.tabular import digits
from assay.errors import InvalidInput
from assay.lab.experiment import Experiment
from assay.lab.training import check
from assay.models.mlp import MLP
from assay.rules.backprop import Backprop
from assay.streams import Streams

BASE = Experiment(data="digits", model="mlp(width=16, depth=1)", optimizer="sgd(lr=0.1, momentum=0.9)", epochs=2)
STREAMS = Streams("test", 3)


class Wide(nn.Module):
    """A user's own model that takes no argument and fits digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Narrow(Wide):
    """A user's own model with too few classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def plain_loop(streams: Streams, epochs: int) -> tuple[nn.Module, float]:
    """Train as a user would without the engine, from the same streams."""
    dataset = digits(generator=streams.torch("data"))
    torch.manual_seed(streams.entropy("init"))
    model = MLP(dataset.input_shape, dataset.outputs, width=16, depth=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = streams.torch("order")
    for _ in range(epochs):
        for x, y in batches(dataset.train, 128, order):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(dataset.test.inputs).argmax(-1) == dataset.test.targets).double().mean()
    return model, float(right)


def test_a_trial_is_a_plain_loop():
    """The engine may add nothing to training: its accuracy must equal a hand-written loop's to the last bit."""
    _, accuracy = plain_loop(STREAMS, epochs=2)
    assert BASE(STREAMS).metrics["test_accuracy"] == accuracy


def test_the_same_seed_gives_the_same_record_and_another_does_not():
    """Records must be a function of task and seed."""
    first, again, other = BASE(STREAMS), BASE(STREAMS), BASE(Streams("test", 4))
    assert first.metrics == again.metrics and first.series == again.series
    assert first.metrics != other.metrics


def test_a_trial_leaves_the_global_generator_alone():
    """A user's own random state must not move because a trial ran in the same process."""
    before = torch.get_rng_state()
    BASE(STREAMS)
    assert torch.equal(before, torch.get_rng_state())


def test_arms_see_the_same_split_and_the_same_order():
    """Two arms that differ in something without effect must give the same numbers: that is what pairing means."""
    assert BASE.but(loss="cross-entropy").__call__(STREAMS).metrics == BASE(STREAMS).metrics
    probed = BASE.but(evaluate_every=0.5)(STREAMS)
    assert probed.metrics == BASE(STREAMS).metrics


@pytest.mark.parametrize(
    ("budget", "samples"), [({"epochs": 3}, 3000), ({"samples": 1500}, 1512), ({"epochs": 0.5}, 512)]
)
def test_a_budget_is_counted_in_samples_seen(budget, samples):
    """The mini-batch that reaches the budget is the last one (1000 training samples, mini-batches of 128 and 104)."""
    assert BASE.but(**budget)(STREAMS).resources["samples"] == samples


def test_a_budget_in_seconds_counts_training_only():
    """Evaluation must not be charged to the arm."""
    record = BASE.but(seconds=0.2)(STREAMS)
    assert 0.2 <= record.resources["training_seconds"] < 0.6


def test_the_best_checkpoint_is_the_best_on_validation_data():
    """With checkpoint="best", the reported state must be the one with the highest validation score seen."""
    record = BASE.but(epochs=12, optimizer="sgd(lr=1.0, momentum=0.9)", checkpoint="best")(STREAMS)
    seen = record.series["validation_accuracy"].values
    assert record.metrics["validation_accuracy"] == max(seen)
    assert record.metrics["test_accuracy"] == record.series["test_accuracy"].values[seen.index(max(seen))]


def test_tuning_never_sees_test_data():
    """A tuning record holds a validation score and nothing of the test split."""
    point = BASE.but(tune={"optimizer.lr": (0.1,)}).tuning()[0]
    metrics = point(STREAMS).metrics
    assert metrics["validation_score"] == metrics["validation_accuracy"]
    assert not any("test" in name for name in metrics)


def test_divergence_is_a_result():
    """A loss that becomes infinite ends training with the status "diverged" and no exception."""
    record = BASE.but(optimizer="sgd(lr=1e12)", epochs=50)(STREAMS)
    assert record.status == "diverged"
    assert math.isnan(record.metrics["train_loss"])
    assert record.resources["epochs"] < 50


def test_the_schedule_is_stepped_once_per_epoch():
    """A learning rate that falls to zero after the first epoch must freeze the network there."""
    frozen = BASE.but(epochs=5, schedule="multi-step(milestones=[1], gamma=0.0)", optimizer="sgd(lr=0.1)")
    assert frozen(STREAMS).metrics == BASE.but(epochs=1, optimizer="sgd(lr=0.1)")(STREAMS).metrics


def test_a_users_own_model_needs_no_arguments():
    """`package.module:MyModel` must work with and without (input_shape, outputs)."""
    assert BASE.but(model=Wide)(STREAMS).metrics["test_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Narrow}, "one score per class"),
        ({"model": Wide, "data": "wine"}, "can't take inputs"),
        ({"model": "cnn(channels=(4,))", "data": "wine"}, "images"),
        ({"optimizer": "sgd(lr=-1.0)"}, "optimizer 'sgd"),
        ({"rule": "forward-forward", "loss": "cross-entropy"}, "own loss"),
        ({"rule": "mono-forward", "data": "diabetes"}, "class labels"),
        ({"loss": "fokal"}, "focal"),
        ({"transforms": ("sam(rho=0.1)",)}, "an optimizer of its own, not a transform"),
        ({"loss": "cross-entropy(reduction='none')"}, "must give one number"),
        ({"loss": "triplet-margin-loss"}, "TripletMarginLoss can't be used"),
        ({"loss": "mse-loss"}, "MSELoss can't be used"),
        ({"rule": "mono-forward", "model": "mlp(depth=0)"}, "no blocks to train"),
        ({"rule": "forward-forward", "model": "cnn(channels=(4,))"}, "Linear - ReLU"),
        (
            {"rule": "mono-forward(schedule='sequential')", "model": "mlp(depth=9)", "epochs": 1},
            "trains in 9 phases.*at least 1.15",
        ),
    ],
)
def test_parts_that_do_not_fit_are_one_clear_error(change, message):
    """Whatever does not fit must be said before training starts."""
    with pytest.raises((InvalidInput, ValueError), match=message):
        BASE.but(**change)(STREAMS)


def test_a_rehearsal_changes_no_record():
    """Loading things beforehand may change what a trial costs, never what it gives."""
    before = BASE(STREAMS)
    BASE.but(model="mlp(width=17)").prepare()
    BASE.prepare()
    BASE.but(tune={"optimizer.lr": (0.1,)}).tuning()[0].prepare()
    after = BASE(STREAMS)
    assert before.metrics == after.metrics and before.series == after.series


def test_a_rehearsal_leaves_errors_to_the_trial():
    """An arm that cannot run must be named by its trial, not by the preparation."""
    BASE.but(model=Narrow).prepare()


class Whole(Backprop):
    """Backpropagation that asks for all samples at once, in two phases."""

    streaming = False

    def __init__(self, model: nn.Module, loss=nn.functional.cross_entropy) -> None:
        super().__init__(model, loss)
        self.phase_names = ("first", "second")


def test_a_rule_that_is_not_streaming_gets_all_samples_at_once():
    """The engine would cut the data of a rule that needs all of it."""
    base = BASE.but(epochs=4, optimizer="sgd(lr=0.1)")
    whole = base.but(rule=Whole)(STREAMS)
    assert whole.resources["samples"] == 4000
    assert whole.metrics == base.but(batch_size=None)(STREAMS).metrics != base(STREAMS).metrics
    with pytest.raises(InvalidInput, match=r"learns from all samples at once.*at least 2"):
        BASE.but(epochs=1, rule=Whole)(STREAMS)


class Untrainable(Wide):
    """A model through which no gradient goes, which shows in the backward pass only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.layers(x)
        if scores.requires_grad:
            scores.register_hook(self._refuse)
        return scores

    def _refuse(self, gradient: torch.Tensor) -> None:
        raise RuntimeError("no gradient here")


def test_check_says_before_training_what_a_trial_would(monkeypatch):
    """`assay train` would train the first arms before it says that the last one can't be."""
    check(BASE)
    with pytest.raises(InvalidInput, match="Linear - ReLU"):
        check(BASE.but(rule="forward-forward", model="cnn(channels=(4,))"))
    with pytest.raises(InvalidInput, match="2 phases"):
        check(BASE.but(rule=Whole, epochs=1))
    with pytest.raises(InvalidInput, match=r"can't train .*Untrainable.*no gradient here"):
        check(BASE.but(model=Untrainable))
    random = torch.get_rng_state()
    monkeypatch.setattr(Backprop, "step", lambda *_: pytest.fail("it trained"))
    check(BASE)
    assert torch.equal(random, torch.get_rng_state())


def test_transforms_draw_from_the_trials_own_stream():
    """Every seed would train with the same noise, and intervals would not cover it; or a rerun would differ."""
    noisy = BASE.but(transforms=("gradient-noise(eta=0.01)",), epochs=1, optimizer="sgd(lr=0.5)")
    first, again, other = (noisy(Streams("test", seed)).metrics for seed in (3, 3, 4))
    plain = noisy.but(transforms=("gradient-noise(eta=0.0)",))(STREAMS).metrics
    assert first == again and first["train_loss"] != plain["train_loss"]
    assert first["train_loss"] - plain["train_loss"] != other["train_loss"] - plain["train_loss"]
