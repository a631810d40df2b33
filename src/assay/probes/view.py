"""How a probe sees a network: its class scores, the features its head reads, the head, the loss.

With a learning rule (anything with `predict`, `features` and `head`), the view asks the rule, so that a network that
predicts by goodness or by a relaxation is measured as it predicts. Without one, scores are the model's output and the
features are the input of the last `nn.Linear` that ran, caught by a hook that lives for one forward pass.

Shapes: B samples, d features, C classes. The caller chooses the mode; `assay.Watch` measures in eval mode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["Observation", "Predictor", "View"]


@runtime_checkable
class Predictor(Protocol):
    """What a view needs of a learning rule; `assay.rules.Rule` has it."""

    def predict(self, x: Any) -> Tensor:
        """Return class scores (B, C)."""
        ...

    def features(self, x: Any) -> dict[str, Tensor]:
        """Return block outputs by layer name, in order."""
        ...

    def head(self) -> nn.Linear | None:
        """Return the linear map from the last features to the scores, if there is one."""
        ...


class Observation(NamedTuple):
    """What one forward pass shows: `scores` (B, C), the last `features` (B, d) and the `head` that reads them."""

    scores: Tensor
    features: Tensor
    head: nn.Linear | None


class View:
    """A network as probes see it.

    Args:
        model: Maps a batch of inputs to class scores (B, C), or to an object with `.logits`. A compiled or
            data-parallel wrapper is looked through.
        rule: The learning rule that trains the model, if it predicts in its own way.
        loss: Maps scores (B, C) and targets (B,) to the mean loss of the batch; cross-entropy if not given.

    Example:
        >>> view = View(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        >>> {name: tuple(h.shape) for name, h in view.features(torch.zeros(2, 4)).items()}
        {'2': (2, 8)}
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rule: Predictor | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInput(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if rule is not None and not isinstance(rule, Predictor):
            raise InvalidInput(f"rule must have predict, features and head; {type(rule).__name__} has not")
        self.model = _unwrapped(model)
        self.rule = rule
        self.loss: Callable[[Tensor, Tensor], Tensor] = loss or F.cross_entropy
        self._head: nn.Linear | None = None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that a measurement may run: the model, and the rule where it is a module."""
        return (self.model, self.rule) if isinstance(self.rule, nn.Module) else (self.model,)

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter lives; the CPU for a model without parameters."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the model's trainable parameters by name; a tied weight comes once, under its first name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def scores(self, x: Any) -> Tensor:
        """Return class scores (B, C) as the network predicts them."""
        return _matrix(self.rule.predict(x) if self.rule is not None else self._forward(x))

    def functional(self, parameters: Mapping[str, Tensor], x: Any) -> Tensor:
        """Return differentiable class scores (B, C) of the model's own forward pass with other parameters.

        Differentiating through detached aliases of the parameters triggers none of the user's gradient hooks.
        """
        with _eager():
            return _matrix(torch.func.functional_call(self.model, dict(parameters), *_arguments(x)))

    def features(self, x: Any) -> dict[str, Tensor]:
        """Return features by layer, in order; the last one is what the head reads, flattened to (B, d).

        Raises:
            InvalidInput: If the model ran no `nn.Linear`, or ran its last one on more than one vector per sample.
        """
        if self.rule is not None:
            return {name: h.flatten(1) for name, h in self.rule.features(x).items()}
        name, features, _ = self._caught(x)
        return {name: features}

    def head(self) -> nn.Linear | None:
        """Return the linear map from the last features to class scores; None if there is none.

        Without a rule it is known after the first call of `features` or `observe`.
        """
        return self.rule.head() if self.rule is not None else self._head

    def observe(self, x: Any, *, features: bool = True) -> Observation:
        """Return scores, last features and head; one forward pass of the model serves all three.

        Args:
            x: Inputs of one batch.
            features: False skips them (an empty (B, 0) takes their place), for a model without a linear head.
        """
        if not features:
            scores = self.scores(x)
            return Observation(scores, scores.new_empty(len(scores), 0), None)
        if self.rule is not None:
            return Observation(self.scores(x), list(self.features(x).values())[-1], self.rule.head())
        _, caught, scores = self._caught(x)
        return Observation(scores, caught, self._head)

    def _forward(self, x: Any) -> Any:
        args, kwargs = _arguments(x)
        with _eager():
            return self.model(*args, **kwargs)

    def _caught(self, x: Any) -> tuple[str, Tensor, Tensor]:
        with _last_linear(self.model) as last:
            scores = _matrix(self._forward(x))
        if not last:
            raise InvalidInput(
                f"{type(self.model).__name__} ran no torch.nn.Linear, so its features are unknown; "
                "end the model with a linear head or pass a rule with features(x)"
            )
        name, self._head, features = last[-1]
        if len(features) != len(scores) or features[0].numel() != self._head.in_features:
            raise InvalidInput(
                f"the last nn.Linear that ran, {name!r}, read {tuple(features.shape)} for {len(scores)} samples; "
                "expected one vector per sample"
            )
        return name, features.flatten(1), scores


def _unwrapped(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return _unwrapped(model.module)
    return getattr(model, "_orig_mod", model)  # torch.compile's wrapper


def _eager() -> AbstractContextManager[Any]:
    """Compiled code would not run the hooks; without a compiler loaded there is nothing to hold off."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), dict(x)) if isinstance(x, Mapping) else ((x,), {})


def _matrix(output: Any) -> Tensor:
    scores = getattr(output, "logits", output)
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InvalidInput(f"the network must return class scores (samples, classes), or .logits; it gave {shape}")
    return scores


@contextmanager
def _last_linear(model: nn.Module) -> Iterator[list[tuple[str, nn.Linear, Tensor]]]:
    """Yield a list that holds, after a forward pass, the last linear layer that ran with its name and input."""
    last: list[tuple[str, nn.Linear, Tensor]] = []

    def catch(name: str) -> Callable[..., None]:
        def hook(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            last[:] = [(name, module, args[0] if args else kwargs["input"])]

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                hooks.enter_context(module.register_forward_pre_hook(catch(name), with_kwargs=True))
        yield last
