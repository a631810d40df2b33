"""Equilibrium propagation: gradients from how a network's fixed point moves when its output is nudged by the loss.

Laborieux and Zenke (ICLR 2024, arXiv:2309.02214); official code Laborieux-Axel/generalized-holo-ep. A free relaxation
ends at s*; nudged ones, with beta dL/ds added to the output's drive, say how s* answers, v = ds*/dbeta. Then

    grad of a connection pre -> post = mean over the batch of v_post (x) s*_pre       (dF/dtheta^T v in general),

and the readout gets its ordinary gradient. That is the loss gradient if the Jacobian at s* is symmetric and v exact.
The first is what `homeostasis` restores: lambda times the loss of `assay.losses.JacobianSymmetryLoss` at s*. The second
is what an average over nudges on a circle in the complex plane gives, up to order r^N, since the network is analytic.

estimator: "holomorphic" nudges by finite beta (`points` of them; 0 is the exact response), "linear" takes the exact
response, "recurrent-backprop" the exact gradient of the fixed point, which needs the transposed weights: the reference.

Shapes: B inputs, C classes; groups of neurons with activations (B, ...).
Departures: nudges raise the loss, so no sign is changed on the way; the exact response linearises at the end of the
free phase, where the official code goes on relaxing; dL/ds is per sample and the mean is taken in the weight gradient.
Cost: `net.steps` free steps, `steps` nudged ones with half the points at once, in complex numbers beyond two points;
no graph is kept over time, so memory does not grow with steps. Homeostasis adds two forward-mode products per draw.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses.jacobian_symmetry import jacobian_directions, jacobian_symmetry_loss
from assay.models._relaxation import State, linear_map
from assay.rules._responses import Response, linear_response, nudged_response
from assay.rules.rule import Rule
from assay.rules.splitting import trainable

if TYPE_CHECKING:
    from assay.models._relaxation import Dynamics

__all__ = ["EquilibriumPropagation"]

ESTIMATORS = ("holomorphic", "linear", "recurrent-backprop")
LOSSES = ("cross-entropy", "mse")
PLAIN = (None, 0.0, "mean", -100)
OFFERED = ("activate", "connections", "damping", "drive", "inject", "readout", "relax", "scores", "shapes", "steps")


class EquilibriumPropagation(Rule):
    """Equilibrium propagation, holomorphic or with finite nudges, and its exact references.

    Args:
        model: A relaxation network: `assay.models.RelaxationNet`, `RelaxationCNN`, or what offers the same methods.
        loss: "cross-entropy", or "mse", half the squared distance from the one-hot label (or from float targets). A
            plain `nn.CrossEntropyLoss` is taken too; other losses are not known to be analytic.
        beta: r, radius of the nudges.
        points: N, nudges on the circle: 1 is one-sided, 2 is +-r, more are complex, 0 is the exact linear response.
        steps: Steps of the nudged relaxation, or of the response's iteration.
        estimator: "holomorphic", "linear" or "recurrent-backprop".
        homeostasis: lambda, coefficient of the homeostatic loss; 0 leaves it out.
        homeostasis_samples: Draws of noise per update; None for the exact loss, in n draws.
        trained: "all", or "head": only what leads into the output group, and the readout, on frozen random groups.
        tolerance: Residual above which a warning says that the dynamics have not settled.
        generator: Source of the homeostatic loss's noise.

    Raises:
        InvalidInput: If the model is no relaxation network, the loss can't be used, or an option is out of range.

    Example:
        >>> from assay.models.relaxation_net import RelaxationNet
        >>> net = RelaxationNet((4,), 3, width=8, gain=0.5, generator=torch.Generator().manual_seed(0))
        >>> logs = EquilibriumPropagation(net).backward(torch.ones(2, 4), torch.tensor([0, 1]))
        >>> sorted(logs), bool(logs["residual"] < 1e-3)
        (['loss', 'residual', 'residual/nudged'], True)
    """

    needs = "vector_field"

    def __init__(
        self,
        model: nn.Module,
        loss: str | nn.Module = "cross-entropy",
        beta: float = 0.2,
        points: int = 2,
        steps: int = 30,
        estimator: str = "holomorphic",
        homeostasis: float = 0.0,
        homeostasis_samples: int | None = 5,
        trained: str = "all",
        tolerance: float = 0.03,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        if missing := [name for name in OFFERED if not hasattr(model, name)]:
            raise InvalidInput(
                f"equilibrium propagation needs a relaxation network such as assay.models.RelaxationNet; "
                f"{type(model).__name__} has no {missing[0]!r}"
            )
        self.loss = _loss_name(loss)
        _check_choice("estimator", estimator, ESTIMATORS)
        _check_choice("trained", trained, ("all", "head"))
        for name, value, least in (("points", points, 0), ("steps", steps, 1), ("homeostasis", homeostasis, 0)):
            if not value >= least:
                raise InvalidInput(f"{name} must be at least {least}, not {value}")
        if not (beta > 0 and tolerance > 0):
            raise InvalidInput(f"beta and tolerance must be above 0, not {beta} and {tolerance}")
        if homeostasis_samples is not None and homeostasis_samples < 1:
            raise InvalidInput(f"homeostasis_samples must be at least 1 or None, not {homeostasis_samples}")
        self.beta, self.points, self.steps = beta, points, steps
        self.estimator = "linear" if points == 0 and estimator == "holomorphic" else estimator
        self.homeostasis, self.homeostasis_samples = homeostasis, homeostasis_samples
        self.trained, self.tolerance = trained, tolerance
        self._warned: set[str] = set()

    @property
    def net(self) -> Dynamics:
        """The model, as the relaxation network that it is."""
        return cast("Dynamics", self.model)

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add the estimated gradient to `.grad`; see `Rule.backward`. Logs the residuals of both phases."""
        net = self.net
        u, residual = self._settled(x)
        targets = self._targets(y, x)
        response = self._respond(x, u, targets, self.estimator)
        self._warn_unless_settled(response.residual, f"the nudged relaxation ({self.steps} steps)")
        with torch.no_grad():
            s = net.activate(u)
        drive = net.drive(s, net.inject(x))
        surrogate = torch.stack([(drive[g] * response.activations[g]).sum() for g in drive]).sum() / len(x)
        loss = self._loss(net.scores(s["out"]), targets)
        logs = {"loss": loss.detach(), "residual": residual, "residual/nudged": response.residual}
        total = surrogate + loss if loss.requires_grad else surrogate
        if self.homeostasis:
            directions = jacobian_directions(s, self.homeostasis_samples, self.generator)
            asymmetry = jacobian_symmetry_loss(lambda state: net.drive(state, {}), s, directions)
            logs["homeostasis"] = asymmetry.detach()
            total = total + self.homeostasis * asymmetry
        total.backward(inputs=self.trained_parameters())
        return logs

    def error_signals(self, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return, by group, the response that the rule learns from and the exact one of recurrent backpropagation.

        Args:
            x: Inputs (B, ...).
            y: Targets (B,) or (B, C).

        Returns:
            Two tensors (B, ...) per group, equal where estimator and Jacobian are free of bias.
        """
        u, _ = self._settled(x)
        targets = self._targets(y, x)
        ours, exact = (self._respond(x, u, targets, e).activations for e in (self.estimator, "recurrent-backprop"))
        return {g: (ours[g], exact[g]) for g in ours}

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group: everything that is trained."""
        if self.trained == "all":
            return [trainable(self.model)]
        head = [module for name, module in self.net.connections.items() if name.endswith("-out")]
        return [trainable(*head, *([self.net.readout] if self.net.readout is not None else []))]

    def _settled(self, x: Tensor) -> tuple[State, Tensor]:
        """Return the free fixed point's pre-activations and their residual."""
        with torch.no_grad():
            u, residual = self.net.relax(x, self.net.steps)
        self._warn_unless_settled(residual, f"the free relaxation ({self.net.steps} steps)")
        return u, residual

    def _warn_unless_settled(self, residual: Tensor, phase: str) -> None:
        if phase in self._warned or float(residual) <= self.tolerance:
            return
        self._warned.add(phase)
        warnings.warn(
            f"{phase} did not settle: residual {float(residual):.3g} per neuron, above the tolerance of "
            f"{self.tolerance:g}; take more steps, more damping or smaller weights. Said once; see logs['residual']",
            stacklevel=3,
        )

    def _targets(self, y: Tensor, x: Tensor) -> Tensor:
        """Return targets (B, C) in the scores' type."""
        readout, like = self.net.readout, next(self.model.parameters())
        classes = readout.out_features if readout is not None else self.net.shapes["out"][0]
        if y.is_floating_point():
            if y.shape != (len(x), classes):
                raise InvalidInput(f"expected targets ({len(x)}, {classes}), got {tuple(y.shape)}")
            return y.to(like)
        if y.shape != (len(x),) or not (int(y.min()) >= 0 and int(y.max()) < classes):
            raise InvalidInput(
                f"expected {len(x)} labels of 0..{classes - 1}, got shape {tuple(y.shape)} with values "
                f"{int(y.min())} to {int(y.max())}"
            )
        return F.one_hot(y, classes).to(like)

    def _respond(self, x: Tensor, u: State, targets: Tensor, estimator: str) -> Response:
        with torch.no_grad():
            if estimator == "holomorphic":
                circle = {"radius": self.beta, "points": self.points, "steps": self.steps}
                return nudged_response(self.net, x, u, lambda s: self._force(s, targets), **circle)  # type: ignore[arg-type]
            force = self._force(self.net.activate(u)["out"], targets)
            return linear_response(self.net, u, force, self.steps, transpose=estimator == "recurrent-backprop")

    def _force(self, out: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's dL/ds_out, analytic in the output group's activations (n B, ...)."""
        scores, targets = self.net.scores(out), targets.repeat(len(out) // len(targets), 1)
        if self.loss == "cross-entropy":
            scores = targets.sum(1, keepdim=True) * _softmax(scores)
        error = scores - targets
        if self.net.readout is not None:
            error = linear_map(F.linear, error, self.net.readout.weight.T)
        return error.view(out.shape)

    def _loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "cross-entropy":
            return F.cross_entropy(scores, targets)
        return (scores - targets).square().sum(1).mean() / 2

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        s = self.net.activate(self._settled(x)[0])
        return s if self.net.readout is not None else {g: v for g, v in s.items() if g != "out"}

    def _scores(self, x: Tensor) -> Tensor:
        return self.net.scores(self.net.activate(self._settled(x)[0])["out"])

    def head(self) -> nn.Linear | None:
        """Return the readout; None where the output group's activations are the scores."""
        return self.net.readout


def _softmax(z: Tensor) -> Tensor:
    """Return softmax over the last axis, analytic in z: what is subtracted is real and cancels."""
    weight = torch.exp(z - z.real.detach().amax(-1, keepdim=True)) if z.is_complex() else z.softmax(-1)
    return weight / weight.sum(-1, keepdim=True)


def _loss_name(loss: str | nn.Module) -> str:
    if isinstance(loss, str) and loss in LOSSES:
        return loss
    if isinstance(loss, nn.CrossEntropyLoss):
        options = (loss.weight, loss.label_smoothing, loss.reduction, loss.ignore_index)
        if options == PLAIN:
            return "cross-entropy"
    given = repr(loss) if isinstance(loss, str) else type(loss).__name__
    raise InvalidInput(
        f"equilibrium propagation can't use {given}: the nudge needs a loss that is analytic in the activations; "
        f"give loss='cross-entropy' or loss='mse'"
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidInput(f"{name} must be one of {', '.join(choices)}, not {value!r}")
