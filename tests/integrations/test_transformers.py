import json

import pytest
import torch

from assay.errors import InvalidInput
from assay.watch import Watch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")


def model_and_samples():
    """A tiny random BERT classifier and 24 sentences of random tokens."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    tokens = torch.randint(20, (24, 6), generator=torch.Generator().manual_seed(1))
    samples = [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": i % 3} for i, t in enumerate(tokens)]
    return transformers.BertForSequenceClassification(config), samples


def fit(tmp_path, watched=True, through_trainer=False, epochs=2, **intervals):
    """Train; return model, watch, trainer and what other callbacks were told."""
    from assay.integrations.transformers import WatchCallback

    model, samples = model_and_samples()
    batches = [transformers.default_data_collator(samples[i : i + 10]) for i in range(0, 24, 10)]
    watch, told = Watch(model, ["neural-collapse", "softmax-collapse"], batches), []

    class Listener(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append(dict(logs))

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=epochs, per_device_train_batch_size=8, report_to=[], seed=3,
        use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=samples, callbacks=[Listener()])
    if watched:
        trainer.add_callback(WatchCallback(watch, log=trainer.log if through_trainer else None, **intervals))
    trainer.train()
    return model, watch, trainer, told


@pytest.mark.parametrize("through_trainer", [False, True])
def test_epochs_are_measured_and_logged(tmp_path, through_trainer):
    """Values are missing in the history, in the Trainer's log, or for its other callbacks."""
    _, watch, trainer, told = fit(tmp_path, through_trainer=through_trainer)
    assert list(watch.history.steps) == [3, 6]
    logged = [row for row in trainer.state.log_history if "watch/nc1" in row]
    assert [row["step"] for row in logged] == [3, 6]
    assert [row["watch/nc1"] for row in logged] == [values["nc1"] for values in watch.history.steps.values()]
    assert sum("watch/nc1" in logs for logs in told) == (2 if through_trainer else 0)
    json.dumps(logged, allow_nan=False)


def test_steps_are_measured(tmp_path):
    """An interval in steps is taken for one in epochs."""
    _, watch, _, _ = fit(tmp_path, every_n_steps=2)
    assert list(watch.history.steps) == [2, 4, 6]


def test_the_watched_run_is_the_unwatched_one(tmp_path):
    """The callback moves the training run, which has dropout."""
    plain = fit(tmp_path, watched=False)[0].state_dict()
    watched = fit(tmp_path, every_n_steps=1, through_trainer=True)[0].state_dict()
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name


def test_values_are_those_of_the_classifier(tmp_path):
    """Features are of another layer than the classifier."""
    model, watch, _, _ = fit(tmp_path)
    assert watch.view.head() is model.classifier
    assert set(watch.history.steps[6]) >= {"nc1", "nc3", "nc4", "softmax_collapse"}


def test_intervals_are_checked():
    """Two intervals, or one of zero, are accepted."""
    from assay.integrations.transformers import WatchCallback

    watch = Watch(torch.nn.Linear(5, 3), ["softmax-collapse"], (torch.ones(3, 5), torch.arange(3)))
    for options in ({"every_n_epochs": 1, "every_n_steps": 1}, {"every_n_steps": 0}, {"every_n_epochs": -1}):
        with pytest.raises(InvalidInput):
            WatchCallback(watch, **options)


def test_the_callback_sets_the_budget():
    """The option is taken and forgotten, or a callback without it lifts the watch's own budget."""
    from assay.integrations.transformers import WatchCallback

    watch = Watch(torch.nn.Linear(5, 3), ["softmax-collapse"], (torch.ones(3, 5), torch.arange(3)))
    WatchCallback(watch, max_overhead=0.1)
    assert watch.max_overhead == 0.1
    WatchCallback(watch)
    assert watch.max_overhead == 0.1
    with pytest.raises(InvalidInput, match="above 0"):
        WatchCallback(watch, max_overhead=-1.0)
