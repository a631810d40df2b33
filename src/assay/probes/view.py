"""How a probe sees a network: its class scores, the features its head reads, the head, the layers' outputs, the loss.

With a learning rule (anything with `predict`, `features` and `head`), the view asks the rule, so that a network that
predicts by goodness or by a relaxation is measured as it predicts. Without one, scores are the model's output and the
features are the input of the `nn.Linear` that gave the scores, or of the last one that ran where the scores are a
function of its output. Features and layers' outputs are caught by hooks that live for one forward pass.

Shapes: B samples, d features, C classes. The caller chooses the mode; `assay.Watch` measures in eval mode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from difflib import get_close_matches
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


NOT_RUN = "the rule predicts without running the layer once with one row per sample"


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
        scores: Picks the class scores (B, C) out of what the model returns, for a model with several outputs.

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
        scores: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInput(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if rule is not None and not isinstance(rule, Predictor):
            raise InvalidInput(f"rule must have predict, features and head; {type(rule).__name__} has not")
        if rule is not None and scores is not None:
            raise InvalidInput("give a rule or scores=, not both: a rule says itself what its scores are")
        self.model = _unwrapped(model)
        self.rule = rule
        self.loss: Callable[[Tensor, Tensor], Tensor] = loss or F.cross_entropy
        self._scores = scores
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
        return _matrix(self.rule.predict(x)) if self.rule is not None else self._chosen(self._forward(x))

    def output(self, x: Any) -> Any:
        """Return what the network gives as it predicts, in whatever form, for a probe that looks at its inside only."""
        return self.rule.predict(x) if self.rule is not None else self._forward(x)

    def token_scores(self, x: Any) -> Tensor:
        """Return scores (n, C) with one row per sample or, of a language model's scores (B, T, C), one per token."""
        output = self.output(x)
        output = output if self._scores is None else self._scores(output)
        scores = getattr(output, "logits", output)
        return _matrix(scores.flatten(0, 1) if isinstance(scores, Tensor) and scores.ndim == 3 else scores)

    def functional(self, parameters: Mapping[str, Tensor], x: Any) -> Tensor:
        """Return differentiable class scores (B, C) of the model's own forward pass with other parameters.

        Differentiating through detached aliases of the parameters triggers none of the user's gradient hooks.
        """
        with _eager():
            return self._chosen(torch.func.functional_call(self.model, dict(parameters), *_arguments(x)))

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

    def layers(
        self, names: Sequence[str] | None = None, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module
    ) -> list[str]:
        """Return the names of layers to read, as `model.named_modules()` has them.

        Args:
            names: Layers the user asked for, which are checked; None for all of `kinds` that hold no other module.
            kinds: What counts as a layer where no names are given.

        Raises:
            InvalidInput: If the model has no layer of such a name, or none of `kinds`.
        """
        modules = dict(self.model.named_modules())
        for name in names or ():
            if name not in modules or not name:
                close = get_close_matches(name, modules, n=3) or [known for known in modules if known][:3]
                raise InvalidInput(
                    f"{type(self.model).__name__} has no layer {name!r}; did you mean {', '.join(map(repr, close))}?"
                )
        if names is not None:
            return list(names)
        found = [n for n, m in modules.items() if n and isinstance(m, kinds) and next(m.children(), None) is None]
        if not found:
            wanted = kinds if isinstance(kinds, tuple) else (kinds,)
            listed = ", ".join(kind.__name__ for kind in wanted)
            raise InvalidInput(f"{type(self.model).__name__} has no layer of type {listed}; name the layers to read")
        return found

    @contextmanager
    def catching(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Fill a dict with the outputs of layers during the forward pass that the block runs.

        Args:
            names: As `layers` gives them.

        Yields:
            Outputs by layer in the order of running, (B, ...) each. They are copies, so that an in-place operation
            after the layer does not reach them. A layer that runs again adds "name#2", "name#3" ...

        Raises:
            InvalidInput: If a layer gives no tensor, or did not run by the end of the block.
        """
        caught: dict[str, Tensor] = {}

        def catch(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                again = sum(key.rpartition("#")[0] == name for key in caught) + (name in caught)
                caught[f"{name}#{again + 1}" if again else name] = _tensor(name, output).clone()

            return hook

        with ExitStack() as hooks:
            for name in dict.fromkeys(names):
                hooks.enter_context(self.model.get_submodule(name).register_forward_hook(catch(name)))
            yield caught
        if missing := [name for name in names if name not in caught]:
            raise InvalidInput(f"layer {missing[0]!r} did not run in the forward pass; leave it out of the layers")

    def observe_layers(
        self, x: Any, names: Sequence[str], *, features: bool = True
    ) -> tuple[Observation, dict[str, Tensor]]:
        """Return what `observe` does and, of the same forward pass, the outputs of layers; see `catching`.

        With a rule they are those of a layer's last run while the rule gives its features or, if it does not run there,
        its scores. What a rule does not run, or not with one row per sample, is left out.

        Raises:
            InvalidInput: If, without a rule, a layer did not run, or its output does not have one row per sample.
        """
        if self.rule is not None:
            return self._observe_rule(self.rule, x, names, features)
        with self.catching(names) as caught:
            seen = self.observe(x, features=features)
        for name, output in caught.items():
            if output.ndim < 2 or len(output) != len(seen.scores):
                raise InvalidInput(
                    f"layer {name!r} gave {tuple(output.shape)} for {len(seen.scores)} samples; "
                    "expected one row per sample: leave it out of the layers"
                )
        return seen, caught

    def _observe_rule(
        self, rule: Predictor, x: Any, names: Sequence[str], features: bool
    ) -> tuple[Observation, dict[str, Tensor]]:
        caught: dict[str, Tensor] = {}
        found: Tensor | None = None
        if features or names:
            with self._last_runs(names, caught):
                found = list(rule.features(x).values())[-1].flatten(1)
        with self._last_runs([name for name in names if name not in caught], caught):
            scores = self.scores(x)
        rows = {name: h for name in names if (h := caught.get(name)) is not None and h.shape[:1] == scores.shape[:1]}
        if not features or found is None:
            return Observation(scores, scores.new_empty(len(scores), 0), None), rows
        return Observation(scores, found, rule.head()), rows

    @contextmanager
    def _last_runs(self, names: Sequence[str], caught: dict[str, Tensor]) -> Iterator[None]:
        """Fill `caught` with the outputs of layers that run in the block; a later run takes an earlier one's place."""

        def catch(name: str) -> Callable[..., None]:
            return lambda module, args, output: caught.update({name: _tensor(name, output).clone()})

        with ExitStack() as hooks:
            for name in dict.fromkeys(names):
                hooks.enter_context(self.model.get_submodule(name).register_forward_hook(catch(name)))
            yield

    def activations(self, x: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs of layers in one forward pass; see `observe_layers`."""
        return self.observe_layers(x, names, features=False)[1]

    def _forward(self, x: Any) -> Any:
        args, kwargs = _arguments(x)
        with _eager():
            return self.model(*args, **kwargs)

    def _chosen(self, output: Any) -> Tensor:
        return _matrix(output if self._scores is None else self._scores(output))

    def _caught(self, x: Any) -> tuple[str, Tensor, Tensor]:
        with _linear_runs(self.model) as runs:
            scores = self.scores(x)
        if not runs:
            raise InvalidInput(
                f"{type(self.model).__name__} ran no torch.nn.Linear, so its features are unknown; "
                "end the model with a linear head or pass a rule with features(x)"
            )
        run = next((run for run in reversed(runs) if run.output is scores), None)
        if run is None and self._scores is not None:
            raise InvalidInput(
                "scores= returned the output of no torch.nn.Linear, so which head is measured is unknown; "
                "let it return one of the model's outputs as it is"
            )
        name, self._head, features, _ = run or runs[-1]
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
    if isinstance(scores, Tensor) and scores.ndim == 2:
        return scores
    expected = "the network must return class scores (samples, classes), or .logits"
    if isinstance(scores, tuple | list | Mapping) and scores:
        keys = list(scores) if isinstance(scores, Mapping) else list(range(len(scores)))
        raise InvalidInput(
            f"{expected}; it gave a {type(scores).__name__} of {len(scores)} ({', '.join(map(repr, keys))}): say which "
            f"to measure, e.g. scores=lambda output: output[{keys[0]!r}], or wrap the model to return it alone"
        )
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    raise InvalidInput(f"{expected}; it gave {shape}")


def _tensor(name: str, output: Any) -> Tensor:
    """A recurrent or attention layer returns its output first, and its state after it."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise InvalidInput(f"layer {name!r} gave a {type(output).__name__}, not a tensor; leave it out")
    return first


class _Run(NamedTuple):
    """One call of a linear layer."""

    name: str
    layer: nn.Linear
    input: Tensor
    output: Tensor


@contextmanager
def _linear_runs(model: nn.Module) -> Iterator[list[_Run]]:
    """Yield a list that holds, after a forward pass, the linear layers that gave a matrix, and the last one anyhow."""
    runs: list[_Run] = []

    def catch(name: str) -> Callable[..., None]:
        def hook(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if runs and runs[-1].output.ndim != 2:
                runs.pop()  # per token: no head, and too large to keep
            runs.append(_Run(name, module, args[0] if args else kwargs["input"], output))

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                hooks.enter_context(module.register_forward_hook(catch(name), with_kwargs=True))
        yield runs
