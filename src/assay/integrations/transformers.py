"""`assay.Watch` inside Hugging Face's `Trainer`.

A callback is not told its trainer, so hand it `trainer.log` to reach TensorBoard, Weights & Biases and the like::

    trainer = Trainer(...)
    trainer.add_callback(WatchCallback(watch, log=trainer.log))

Without it, values go where the Trainer keeps its own: `trainer.state.log_history`, which checkpoints contain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from assay.errors import InvalidInput, MissingExtra
from assay.watch import Watch

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtra(
        "this callback needs transformers; install it with: pip install 'assay[transformers]'"
    ) from error

__all__ = ["WatchCallback"]


class WatchCallback(TrainerCallback):
    """Measures while a `Trainer` trains; the horizontal axis is the trainer's global step.

    Args:
        watch: What to measure; its data may be batches as the Trainer's collator makes them (mappings with "labels").
        every_n_epochs: Measure at the end of every n-th epoch.
        every_n_steps: Measure after every n-th optimizer step instead.
        log: Where the values go, usually `trainer.log`.
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
        log: Callable[[dict[str, float]], None] | None = None,
        prefix: str = "watch/",
        max_overhead: float | None = None,
    ) -> None:
        if every_n_epochs is not None and every_n_steps is not None:
            raise InvalidInput("give every_n_epochs or every_n_steps, not both")
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs if every_n_epochs is not None or every_n_steps is not None else 1
        if (self.every_n_steps or self.every_n_epochs or 0) < 1:
            raise InvalidInput("the interval must be at least 1")
        self.watch, self.log, self.prefix = watch, log, prefix
        if max_overhead is not None:
            watch.max_overhead = max_overhead

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure after an optimizer step."""
        if self.every_n_steps and state.global_step % self.every_n_steps == 0:
            self._measure(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure at the end of an epoch."""
        if self.every_n_epochs and round(state.epoch or 0) % self.every_n_epochs == 0:
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        if not (values := self.watch.measure(state.global_step)):
            return
        logged = {self.prefix + key: value for key, value in values.items() if not math.isnan(value)}
        if self.log is not None:
            self.log(logged)
        else:
            state.log_history.append({**logged, "epoch": state.epoch or 0.0, "step": state.global_step})
