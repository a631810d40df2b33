"""Gradient boosting of a network's last hidden layer: a few units per stage, fitted to what is still missing.

Emami and Martinez-Munoz, IEEE Access 11 (2023) 42738, arXiv:1909.12098; equations from the official code. On features
phi(x) of a fixed body (or the inputs), with a constant F_0 and J units per stage t = 1..T:

    r = -dL/dF at F_{t-1};   h_t = argmin over nets V sigma(U phi + a) + c of the squared error to r on a random share
    rho_t = shrinkage * Newton step of sum L(F_{t-1} + rho h_t) over all samples;   F_t = F_{t-1} + rho_t h_t

The network is built in place: rows of its hidden layer are U_t, a_t, columns of its head rho_t V_t, the head's bias is
F_0 + sum_t rho_t c_t. So the model is the boosted network at any time, and its first stages are F_t exactly. F_0 is
the best constant of the squared and the logistic loss, and 0 of any other.

Shapes: x (N, ...), phi (N, D), U_t (J, D), V_t (k, J) for k raw outputs, r (N, k), scores (N, outputs).
Departures: the residual fit sums over outputs; scikit-learn, which the code calls, follows the gradient of this sum but
takes the mean for its value. Steps are bounded, and 0 where the loss is flat; there the code divides by zero. Other
losses are differentiated by torch: their curvature is exact, where that of several classes is a diagonal; a step that
does not lower the loss is halved until it does, from 1 where there is no curvature.
Cost: T fits of J units by L-BFGS in float64 on the CPU; the body runs once, if the data stay the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.rules._boosting_losses import boosting_loss
from assay.rules._boosting_stage import Remembering, Stage, fitted_stage, fresh_stage, last_layers, residual_fit
from assay.rules.rule import Rule
from assay.rules.splitting import trainable

__all__ = ["GradientBoosting"]


class GradientBoosting(Rule):
    """Stage-wise training of a hidden layer and the head on it.

    Args:
        model: An `nn.Sequential` that ends in Linear - activation - Linear, whose weights are replaced. What comes
            before is the body; it stays as it is, in evaluation mode.
        loss: "squared", "logistic" (two classes), "softmax", or a criterion of scores and targets that torch can
            differentiate, the mean over samples.
        step_units: J, a divisor of the hidden layer's units.
        shrinkage: Factor of each step, above 0 up to 1; 1 in the code, where it is tuned between 0.025 and 1.
        subsample: Share of the samples that a stage is fitted to, above 0 up to 1.
        max_iterations: Of L-BFGS per stage and step.
        weight_decay: Of the stage's weights, divided by the number of samples.
        generator: Draws initial weights and subsamples.

    Attributes:
        rho: Step lengths (T,), 0 for a stage that is not fitted yet or stopped on a flat loss.
        biases: The head's bias after each number of stages, (T + 1, outputs).

    Raises:
        InvalidInput: If the model ends otherwise, the units can't be divided, or a number is out of its range.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 6), nn.Sigmoid(), nn.Linear(6, 2))
        >>> rule = GradientBoosting(model, step_units=2)
        >>> x, y = torch.eye(2).repeat(8, 1), torch.tensor([0, 1]).repeat(8)
        >>> losses = rule.fit(x, y)
        >>> len(losses), losses[0] > losses[-1], model(x).argmax(1).equal(y)
        (3, True, True)
    """

    streaming = False
    needs = "blocks"
    rho: Tensor
    biases: Tensor
    encoding: Tensor
    decoding: Tensor

    def __init__(
        self,
        model: nn.Module,
        loss: str | Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        step_units: int = 1,
        shrinkage: float = 0.1,
        subsample: float = 0.5,
        max_iterations: int = 200,
        weight_decay: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        self._parts = last_layers(model)
        self._phi = Remembering(self._parts[0])
        units, outputs = self.hidden.out_features, self.output.out_features
        _check_options(units, step_units, shrinkage, subsample, max_iterations, weight_decay)
        self.loss, self.step_units, self.shrinkage, self.subsample = (
            boosting_loss(loss),
            step_units,
            shrinkage,
            subsample,
        )
        self.max_iterations, self.weight_decay = max_iterations, weight_decay
        self.phase_names = tuple(f"stage{t}" for t in range(1, units // step_units + 1))
        like = self.output.weight.detach()
        encoding = self.loss.encoding(outputs).to(like)
        self.register_buffer("encoding", encoding, persistent=False)
        self.register_buffer("decoding", torch.linalg.pinv(encoding.double()).to(like), persistent=False)
        self.register_buffer("rho", like.new_zeros(len(self.phase_names)))
        self.register_buffer("biases", like.new_zeros(len(self.phase_names) + 1, outputs))
        self._clear(0)
        self._parts[0].eval()

    @property
    def body(self) -> nn.Sequential:
        """What comes before the hidden layer."""
        return self._parts[0]

    @property
    def hidden(self) -> nn.Linear:
        """The layer that holds all U_t, a_t."""
        return self._parts[1]

    @property
    def activation(self) -> nn.Module:
        """What acts on the hidden layer's units."""
        return self._parts[2]

    @property
    def output(self) -> nn.Linear:
        """The head, which holds all rho_t V_t."""
        return self._parts[3]

    def fit(self, x: Tensor, y: Tensor) -> list[float]:
        """Boost all stages on all samples.

        Args:
            x: Inputs (N, ...).
            y: Labels (N,), or targets (N, outputs) of the squared loss and of criteria that take them; (N,) will do for
                one output, and a criterion sees (N, 1).

        Returns:
            The mean loss after each stage.

        Raises:
            InvalidInput: If the targets do not fit the loss, or a criterion has no gradient.
        """
        losses = [float(self._boost(x, y)["loss"]) for _ in self.phases(len(self.phase_names))]
        self.eval()
        return losses

    def step(
        self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, clip: float | None = None
    ) -> dict[str, Tensor]:
        """Fit the current stage to all samples and step; the optimizer takes no part. See `Rule.step`."""
        return self._boost(x, y)

    def begin(self, phase: str) -> None:
        """Enter a stage; it and the later ones are taken out of the network. See `Rule.begin`."""
        before = self._phase
        super().begin(phase)
        for t in range(before, self._phase):
            if self.rho[t] == 0:  # trained by `backward` and never scaled: a step of 1
                self.biases[t + 1] = self.output.bias.detach()
        self._clear(self._phase)
        if self._phase == 0:
            self._phi = Remembering(self.body)  # `.data` and `double()` leave no trace in its versions

    def _boost(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Fit the current stage by L-BFGS, from fresh weights or, if it was fitted before, from where it is."""
        targets = self._targets(y)
        if self._phase == 0:
            self.start(y)
        phi, raw = self._before(x)
        r = self.loss.residual(targets, raw)
        if self.subsample < 1:
            size = max(1, int(self.subsample * len(x)))
            rows = torch.randperm(len(x), generator=self.generator)[:size].to(x.device)
            phi, r = phi[rows], r[rows]
        stage = self._stage()
        if self.rho[self._phase] == 0:
            sizes = self.hidden.in_features, self.step_units, len(self.encoding)
            stage = fresh_stage(sizes, self.activation, self.generator)
        self._write(fitted_stage(stage, phi, r, self.activation, self.weight_decay, self.max_iterations))
        return {"loss": self.line_search(x, y)}

    def start(self, y: Tensor) -> None:
        """Make F_0 the network's output; for loops that train by `backward`, before the first stage.

        Args:
            y: All targets.
        """
        targets = self._targets(y)
        with torch.no_grad():
            change = self.loss.start(targets, len(self.encoding)).to(self.biases) @ self.encoding - self.biases[0]
            self.output.bias.add_(change)
            self.biases[0] += change

    @torch.no_grad()
    def line_search(self, x: Tensor, y: Tensor) -> Tensor:
        """Scale the current stage by its step length; for loops that train by `backward`, after each stage.

        Args:
            x: All inputs (N, ...).
            y: All targets.

        Returns:
            The mean loss with the scaled stage.
        """
        t, targets = self._phase, self._targets(y)
        phi, raw = self._before(x)
        f = self._outputs(phi, *self._stage())
        rho = self.shrinkage * self.loss.newton(targets, raw, f)
        U, a, V, c = self._stage()
        self._write((U, a, rho * V, rho * c))
        self.rho[t] = rho
        self.biases[t + 1] = self.output.bias
        return self.loss.value(targets, raw + rho * f)

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add the gradient of the current stage's residual fit, 0 for other stages' units; see `Rule.backward`."""
        targets = self._targets(y)
        phi, raw = self._before(x)
        U, a, V, c = self._stage()
        r = self.loss.residual(targets, raw).detach()
        loss = residual_fit(self._outputs(phi, U, a, V, c), r, U, V, self.weight_decay)
        loss.backward()
        return {"loss": loss.detach()}

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the last two layers' parameters, of which each stage owns a slice."""
        return [trainable(self.hidden, self.output)]

    def frozen(self) -> list[nn.Module]:
        """Return the body."""
        return [self.body]

    def _targets(self, y: Tensor) -> Tensor:
        targets = self.loss.targets(y, self.output.out_features)
        return targets.to(self.biases.dtype) if targets.is_floating_point() else targets

    def _slice(self) -> slice:
        return slice(self._phase * self.step_units, (self._phase + 1) * self.step_units)

    def _stage(self) -> Stage:
        """Return the current stage as views of the model's parameters, in raw outputs."""
        own = self._slice()
        V = self.decoding.T @ self.output.weight[:, own]
        c = (self.output.bias - self.biases[self._phase]) @ self.decoding
        return self.hidden.weight[own], self.hidden.bias[own], V, c

    @torch.no_grad()
    def _write(self, stage: Stage) -> None:
        U, a, V, c = (part.to(self.output.weight) for part in stage)
        own = self._slice()
        self.hidden.weight[own], self.hidden.bias[own] = U, a
        self.output.weight[:, own] = self.encoding.T @ V
        self.output.bias.copy_(self.biases[self._phase] + c @ self.encoding)

    @torch.no_grad()
    def _clear(self, stages: int) -> None:
        """Take all but the first stages out of the network."""
        self.output.weight[:, stages * self.step_units :] = 0
        self.rho[stages:] = 0
        self.output.bias.copy_(self.biases[stages])

    def _stage_biases(self) -> Tensor:
        """Return the head's bias after each number of stages; later stages than the current one add nothing."""
        biases = self.biases.clone()
        biases[self._phase + 1 :] = self.output.bias.detach()
        return biases

    def _outputs(self, phi: Tensor, U: Tensor, a: Tensor, V: Tensor, c: Tensor) -> Tensor:
        return F.linear(self.activation(F.linear(phi, U, a)), V, c)

    @torch.no_grad()
    def _before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return phi and F_{t-1}: the raw outputs of the stages before the current one."""
        phi, used = self._phi(x), self._phase * self.step_units
        h = self.activation(F.linear(phi, self.hidden.weight[:used], self.hidden.bias[:used]))
        scores = F.linear(h, self.output.weight[:, :used], self.biases[self._phase])
        return phi, scores @ self.decoding

    def staged_scores(self, x: Tensor) -> Tensor:
        """Return the scores after 0, 1, ..., T stages, (T + 1, B, outputs), of one forward pass.

        Args:
            x: Inputs (B, ...).
        """
        with self._inference():
            h = self.activation(self.hidden(self.body(x)))
            parts = h.unflatten(1, (-1, self.step_units)).permute(1, 0, 2)
            columns = self.output.weight.unflatten(1, (-1, self.step_units)).permute(1, 2, 0)
            summed = torch.cat([h.new_zeros(1, len(x), self.output.out_features), (parts @ columns).cumsum(0)])
            return summed + self._stage_biases()[:, None]

    def to_module(self, stages: int | None = None) -> nn.Sequential:
        """Return a plain network of the first stages: the body itself, and copies of the last two layers.

        Args:
            stages: How many, 1 to T; None is all of them.

        Raises:
            InvalidInput: If there are not so many stages.
        """
        stages = len(self.rho) if stages is None else stages
        if not 1 <= stages <= len(self.rho):
            raise InvalidInput(f"stages must be from 1 to {len(self.rho)}, which is all there are, not {stages}")
        body, hidden, activation, output = self._parts
        used = stages * self.step_units
        first = nn.utils.skip_init(nn.Linear, hidden.in_features, used).to(hidden.weight)
        second = nn.utils.skip_init(nn.Linear, used, output.out_features).to(hidden.weight)
        with torch.no_grad():
            first.weight.copy_(hidden.weight[:used])
            first.bias.copy_(hidden.bias[:used])
            second.weight.copy_(output.weight[:, :used])
            second.bias.copy_(self._stage_biases()[stages])
        return nn.Sequential(body, first, activation, second)

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        phi = self.body(x)
        known = {"body": phi} if list(self.body.parameters()) else {}
        return known | {"hidden": self.activation(self.hidden(phi))}

    def _scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores

    def head(self) -> nn.Linear:
        """Return the output layer."""
        return self.output


def _check_options(
    units: int, step_units: int, shrinkage: float, subsample: float, max_iterations: int, weight_decay: float
) -> None:
    if step_units < 1 or units % step_units:
        raise InvalidInput(f"step_units must divide the hidden layer's {units} units, not {step_units}")
    if not (0 < shrinkage <= 1 and 0 < subsample <= 1):
        raise InvalidInput(f"shrinkage and subsample must be above 0 up to 1; got {shrinkage} and {subsample}")
    if max_iterations < 1 or not weight_decay >= 0:
        raise InvalidInput(f"need max_iterations >= 1 and weight_decay >= 0; got {max_iterations} and {weight_decay}")
