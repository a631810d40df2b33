import importlib
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from assay.errors import InvalidInput, MissingExtra
from assay.watch import Watch

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")


class Classifier(lightning.LightningModule):
    """The module of Lightning's own first example, with dropout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))

    def forward(self, x):
        """Return scores."""
        return self.net(x)

    def training_step(self, batch, batch_idx):
        """Return the loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    """48 samples of three classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 5, generator=generator), torch.arange(48) % 3


def fit(tmp_path, watched, epochs=4, accumulate=1, **intervals):
    """Train on a loader that is also what is measured; return model, watch, trainer."""
    from assay.integrations.lightning import WatchCallback

    torch.manual_seed(0)
    model = Classifier()
    loader = DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True)
    watch = Watch(model, ["neural-collapse", "softmax-collapse"], loader)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=lightning.loggers.CSVLogger(tmp_path) if watched else False,
        callbacks=[WatchCallback(watch, **intervals)] if watched else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
    )
    torch.manual_seed(1)
    trainer.fit(model, loader)
    return model, watch, trainer


def test_each_epoch_is_measured_and_logged(tmp_path):
    """Values are missing in the history, in the logger's file, or for callbacks that monitor."""
    _, watch, trainer = fit(tmp_path, True, every_n_epochs=2)
    assert list(watch.history.steps) == [6, 12]
    text = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert "watch/nc1" in text[0] and len(text) == 3
    assert trainer.callback_metrics["watch/nc1"].item() == pytest.approx(watch.history.steps[12]["nc1"], rel=1e-6)


@pytest.mark.parametrize("accumulate,expected", [(1, [4, 8, 12]), (3, [4])])
def test_optimizer_steps_are_counted(tmp_path, accumulate, expected):
    """With accumulation a step is measured several times or batches are counted."""
    _, watch, _ = fit(tmp_path, True, accumulate=accumulate, every_n_steps=4)
    assert list(watch.history.steps) == expected
    assert len(next(tmp_path.rglob("metrics.csv")).read_text().splitlines()) == 1 + len(expected)


def test_the_watched_run_is_the_unwatched_one(tmp_path):
    """The callback moves the training run."""
    plain, _, _ = fit(tmp_path, False)
    watched, _, _ = fit(tmp_path, True, every_n_steps=1)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_intervals_are_checked():
    """Two intervals, or one of zero, are accepted."""
    from assay.integrations.lightning import WatchCallback

    watch = Watch(nn.Linear(5, 3), ["softmax-collapse"], data())
    for options in ({"every_n_epochs": 1, "every_n_steps": 1}, {"every_n_steps": 0}, {"every_n_epochs": -1}):
        with pytest.raises(InvalidInput):
            WatchCallback(watch, **options)


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_without_the_extra_the_error_says_what_to_install(name, monkeypatch):
    """An import error names a module that the user never heard of."""
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.pytorch", None)
    monkeypatch.delitem(sys.modules, f"assay.integrations.{name}", raising=False)
    with pytest.raises(MissingExtra, match=rf"assay\[{name}\]"):
        importlib.import_module(f"assay.integrations.{name}")


def test_the_callback_sets_the_budget():
    """The option is taken and forgotten, or a callback without it lifts the watch's own budget."""
    from assay.integrations.lightning import WatchCallback

    watch = Watch(nn.Linear(5, 3), ["softmax-collapse"], data())
    WatchCallback(watch, max_overhead=0.1)
    assert watch.max_overhead == 0.1
    WatchCallback(watch)
    assert watch.max_overhead == 0.1
    with pytest.raises(InvalidInput, match="above 0"):
        WatchCallback(watch, max_overhead=-1.0)
