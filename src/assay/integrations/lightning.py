"""`assay.Watch` inside a Lightning `Trainer`.

Values go to the trainer's loggers at the step they were measured, and to `trainer.callback_metrics`, so that
`ModelCheckpoint(monitor="watch/nc1")` and `EarlyStopping` can use them. Every process measures, as probes reduce across
processes.
"""

from __future__ import annotations

import math
from typing import Any

from assay.errors import InvalidInput, MissingExtra
from assay.watch import Watch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtra("this callback needs Lightning: pip install 'assay[lightning]'") from error

__all__ = ["WatchCallback"]


class WatchCallback(Callback):
    """Measures while a Lightning `Trainer` trains; the horizontal axis is the trainer's global step.

    Args:
        watch: What to measure; its model is usually the `LightningModule`, whose `forward` must return class scores.
        every_n_epochs: Measure at the end of every n-th training epoch.
        every_n_steps: Measure after every n-th optimizer step instead.
        prefix: Put before each quantity's name in the log.
        max_overhead: Sets the watch's budget, such as 0.1 for a tenth of training time; see `assay.Watch`.

    Raises:
        InvalidInput: If both intervals are given, one is below 1, or the budget is not above 0.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        prefix: str = "watch/",
        max_overhead: float | None = None,
    ) -> None:
        if every_n_epochs is not None and every_n_steps is not None:
            raise InvalidInput("give every_n_epochs or every_n_steps, not both")
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs if every_n_epochs is not None or every_n_steps is not None else 1
        if (self.every_n_steps or self.every_n_epochs or 0) < 1:
            raise InvalidInput("the interval must be at least 1")
        self.watch, self.prefix = watch, prefix
        if max_overhead is not None:
            watch.max_overhead = max_overhead
        self._last_step = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after an optimizer step; with gradient accumulation not every batch has one."""
        step = trainer.global_step
        if self.every_n_steps and step != self._last_step and step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)
        self._last_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the end of an epoch."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (values := self.watch.measure(trainer.global_step)):
            return
        logged = {self.prefix + key: value for key, value in values.items() if not math.isnan(value)}
        pl_module.log_dict(logged, logger=False)  # for callbacks that monitor; the loggers get every measurement:
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)
