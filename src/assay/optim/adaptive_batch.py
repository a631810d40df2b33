"""AdAdaGrad: the batch grows when the mini-batch gradient is too noisy, while AdaGrad (or any optimizer) steps.

Lau, Liu and Kolar, arXiv:2402.11215, algorithm 1. On a batch of size b, with the parameters before the update:

    m = mean gradient of the batch;   suggestion = test(per-sample gradients, m)   (`assay.optim.batch_tests`)
    optimizer step;   b <- min(b_max, max(b, ceil(suggestion)))

With `torch.optim.Adagrad` this is AdAdaGrad, with `assay.optim.AdaGradNorm` AdAdaGradNorm.

Shapes: x (b, ...), y (b, ...).
Departures: m comes from an ordinary backward pass, so that a test that never fires leaves a run bit for bit as it is;
variances come from per-sample gradients of at most `subsample` samples, the first ones of a shuffled batch. The test is
not made any more once b = b_max. Micro-batches (gradient accumulation, data parallelism) are not merged: a step is one
batch on one device, without a gradient scaler.
Cost: a second pass, over the tested samples, and their gradients: subsample times the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from assay.data.adaptive_batches import AdaptiveBatchSampler
from assay.errors import InvalidInput
from assay.optim.batch_tests import per_sample_gradients

__all__ = ["AdaptiveBatch"]


class AdaptiveBatch:
    """Steps an optimizer and lets a test grow the sampler's batches.

    Args:
        optimizer: Over the model's parameters.
        sampler: The `batch_sampler` of the loader that the batches come from.
        test: `test(gradients, mean) -> suggested size`, of single samples' gradients and the batch's by name, such as
            `assay.optim.NormTest`.
        model: Trained; must not mix samples.
        loss: `loss(scores, targets) -> scalar`, a mean over samples.
        interval: Steps between tests.
        subsample: Most samples whose own gradients are computed; None for all of the batch.

    Attributes:
        suggestion: What the last test suggested.

    Raises:
        InvalidInput: If interval, subsample or the sampler's first batches are too small for a variance.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from assay.optim.batch_tests import NormTest
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(x, x.sum(1, keepdim=True) + x[:, :1].sign())
        >>> sampler, model = AdaptiveBatchSampler(200, batch_size=8), nn.Linear(3, 1)
        >>> adagrad = torch.optim.Adagrad(model.parameters(), lr=0.3)
        >>> adaptive = AdaptiveBatch(adagrad, sampler, NormTest(0.5), model, nn.functional.mse_loss)
        >>> for _ in range(5):
        ...     for batch in DataLoader(data, batch_sampler=sampler):
        ...         loss = adaptive.step(*batch)
        >>> sampler.batch_size > 8
        True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        sampler: AdaptiveBatchSampler,
        test: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float],
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        interval: int = 1,
        subsample: int | None = None,
    ) -> None:
        if interval < 1 or (subsample is not None and subsample < 2):
            raise InvalidInput(f"interval must be at least 1 and subsample at least 2; got {interval} and {subsample}")
        if sampler.batch_size < 2:
            raise InvalidInput("a batch of 1 has no variance and would never be tested; start with 2 or more")
        self.optimizer, self.sampler, self.test = optimizer, sampler, test
        self.model, self.loss = model, loss
        self.interval, self.subsample = interval, subsample
        self.steps, self.suggestion = 0, 0.0

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Do one update, then set the size of the batches to come.

        Args:
            x: Inputs (b, ...).
            y: Targets (b, ...).

        Returns:
            The batch's loss, detached.

        Raises:
            InvalidInput: If the model mixes samples, or the test's answer is NaN, as for gradients that are not finite;
                nothing is updated then.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model(x), y)
        loss.backward()
        self.steps += 1
        suggestion = self._suggested(x, y)
        if suggestion is not None and math.isnan(suggestion):
            raise InvalidInput("the suggested batch size is NaN; the gradients that it comes from must be finite")
        self.optimizer.step()
        if suggestion is not None:
            self.suggestion = suggestion
            self.sampler.grow_to(suggestion)
        return loss.detach()

    def _suggested(self, x: Tensor, y: Tensor) -> float | None:
        """Return what the test says before the update; None where it is not made."""
        full = self.sampler.batch_size >= self.sampler.max_batch_size
        # The rest of an epoch may be a single sample, which has no variance.
        if full or self.steps % self.interval or len(x) < 2:
            return None
        tested = len(x) if self.subsample is None else min(self.subsample, len(x))
        gradients = per_sample_gradients(self.model, self.loss, x[:tested], y[:tested])
        parameters = dict(self.model.named_parameters())
        # a parameter that the loss does not reach has gradients of 0 for single samples and none for the batch
        mean = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
        return self.test(gradients, {name: mean[name] for name in gradients})

    def state_dict(self) -> dict[str, object]:
        """Return the step count and the last suggestion; save it beside the optimizer's and the sampler's state."""
        return {"steps": self.steps, "suggestion": self.suggestion}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps, self.suggestion = int(state["steps"]), float(state["suggestion"])  # type: ignore[call-overload, arg-type]
