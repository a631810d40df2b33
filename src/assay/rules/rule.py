"""The protocol of learning rules: how a mini-batch becomes an update, and how the trained network predicts.

A rule stands where `loss.backward()` stands in a plain loop; optimizer, loader and loop stay PyTorch's::

    rule = MonoForward(model, num_classes=10)
    optimizer = torch.optim.Adam(rule.parameters(), lr=1e-3)
    for x, y in loader:
        optimizer.zero_grad(set_to_none=True)
        logs = rule.backward(x, y)          # fills .grad; logs["loss"] is a detached scalar
        optimizer.step()
        rule.after_step()
    scores = rule.predict(x)                # (B, C); argmax is the class

A rule that trains block after block has several phases; `for phase in rule.phases(epochs)` enters them in turn, and
each gets a fresh optimizer over `phase.parameters` (`assay.rules.fit` does that).

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["Phase", "Rule"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which a fixed set of parameters is trained.

    Args:
        name: What is trained, "all" where a rule has one phase only.
        parameters: The parameters that an optimizer of this phase gets.
        epochs: The phase's share of the budget, in passes over the data; need not be a whole number.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    epochs: float


class Rule(nn.Module):
    """Base class of learning rules.

    A subclass defines `backward`, `groups`, `_scores` and `_features`. All its state is in `state_dict()`, as tensors
    only: the model, what the rule learns beside it, running means, the phase and the generator's state. A rule that is
    loaded in mid-run goes on bit for bit.

    Args:
        model: The network that is trained; stays the user's own module.
        generator: Source of all the rule's randomness; None is a fresh one with seed 0, never the global one.

    Attributes:
        local: Whether the gradients of a block never depend on later blocks.
        streaming: Whether the rule learns from one mini-batch at a time; one that does not is given all training data
            as a single mini-batch, by `assay.rules.fit` and by an `Experiment`, so that a pass is one `step`.
        label_sweep: Whether prediction tries every class, at the cost of C passes.
        stochastic_predict: Whether prediction draws random numbers.
        needs: What the model must offer: "loss" (anything callable) or "blocks" (see `assay.rules.blocks`).
        phase_names: The phases in order.
    """

    local: bool = False
    streaming: bool = True
    label_sweep: bool = False
    stochastic_predict: bool = False
    needs: str = "loss"

    def __init__(self, model: nn.Module, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.model = model
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.phase_names: tuple[str, ...] = ("all",)
        self._phase = 0

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add this mini-batch's update signal to `.grad` of exactly `trained_parameters()`.

        Args:
            x: Inputs (B, ...).
            y: Targets (B,) or (B, outputs).

        Returns:
            Detached scalars; "loss" is what the rule minimises, "loss/<block>" its local parts.
        """
        raise NotImplementedError

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters trained in the current phase, one list per loss that trains them together."""
        raise NotImplementedError

    def _scores(self, x: Tensor) -> Tensor:
        """Return class scores (B, C); called without gradients and in evaluation mode."""
        raise NotImplementedError

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        """Return block outputs by name; called without gradients and in evaluation mode."""
        raise NotImplementedError

    def head(self) -> nn.Linear | None:
        """Return the linear map from the last features to the class scores, None if there is none."""
        return None

    def after_step(self) -> None:
        """Do what has to follow the optimizer's step; nothing unless a rule needs it."""

    def predict(self, x: Tensor) -> Tensor:
        """Return class scores under the rule's own inference, leaving no trace on the rule.

        Args:
            x: Inputs (B, ...).

        Returns:
            Scores (B, C) without gradient; argmax is the predicted class.
        """
        with self._inference():
            return self._scores(x)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the blocks' outputs under the rule's own inference, leaving no trace on the rule.

        Args:
            x: Inputs (B, ...).

        Returns:
            Block name -> output (B, ...) as the block gives it, in order; the last one is what `head()` reads.
        """
        with self._inference():
            return self._features(x)

    def step(
        self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, clip: float | None = None
    ) -> dict[str, Tensor]:
        """Do one whole update: clear gradients, `backward`, clip, optimizer step, `after_step`.

        Args:
            x: Inputs (B, ...).
            y: Targets (B,) or (B, outputs).
            optimizer: Over (some of) the rule's parameters.
            clip: Largest gradient norm of each of `groups()`, so that clipping does not couple local losses.

        Returns:
            What `backward` returned.
        """
        optimizer.zero_grad(set_to_none=True)
        logs = self.backward(x, y)
        if clip is not None:
            for group in self.groups():
                nn.utils.clip_grad_norm_(group, clip)
        optimizer.step()
        self.after_step()
        return logs

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `backward` gives gradients in the current phase."""
        return [parameter for group in self.groups() for parameter in group]

    @property
    def phase(self) -> str:
        """Name of the current phase."""
        return self.phase_names[self._phase]

    def begin(self, phase: str) -> None:
        """Enter a phase and drop the gradients of the last one.

        Args:
            phase: One of `phase_names`.

        Raises:
            InvalidInput: If there is no such phase.
        """
        if phase not in self.phase_names:
            raise InvalidInput(f"no phase {phase!r}; {type(self).__name__} has {', '.join(self.phase_names)}")
        self._phase = self.phase_names.index(phase)
        self.zero_grad(set_to_none=True)
        self.train(self.training)

    def phases(self, epochs: float) -> Iterator[Phase]:
        """Enter each phase in turn and yield it; the budget is shared equally among them.

        The rule is in the phase that was yielded last, so train inside the loop instead of collecting the phases.

        Args:
            epochs: Passes over the data in all.

        Raises:
            InvalidInput: If the budget is not positive.
        """
        if not epochs > 0:
            raise InvalidInput(f"epochs must be above 0, not {epochs}")
        for name in self.phase_names:
            self.begin(name)
            yield Phase(name, tuple(self.trained_parameters()), epochs / len(self.phase_names))

    def frozen(self) -> list[nn.Module]:
        """Return the modules that the current phase only evaluates; they stay in evaluation mode."""
        return []

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for what the current phase does not train."""
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Run without gradients in evaluation mode, then restore every module's own mode."""
        training = [module for module in self.modules() if module.training]
        if training:
            self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True

    # One tensor, so that a rule's state can be cloned, compared and stored as safetensors like any other.
    def get_extra_state(self) -> Tensor:
        """Return the generator's state followed by the phase, as bytes."""
        state = self.generator.get_state()
        return torch.cat([state, torch.tensor([self._phase], dtype=state.dtype)])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        self.generator.set_state(state[:-1].cpu())
        self._phase = int(state[-1])
        self.train(self.training)
