"""How far the Jacobian of a network's vector field is from symmetric, at its fixed points.

Laborieux and Zenke (arXiv:2309.02214) split J = S + A into its symmetric and antisymmetric part:

    jacobian_asymmetry    |A|_F / (|S|_F + |A|_F), averaged over samples: 0 symmetric, 1 antisymmetric, 1/2 independent
    relaxation_residual   how far the network is from the fixed point: root mean square over neurons of F(s) - u, the
                          largest of all samples

with |S|^2 = (|J|^2 + tr J J) / 2 and |A|^2 = (|J|^2 - tr J J) / 2. Equilibrium propagation's gradient is exact where it
is 0.

Shapes: states (B, ...) or dicts of them, n neurons per sample.
Departures: J is that of the drive F(s), where the official code has F(s) - s, whose leak is symmetric and the larger
the more neurons there are; the share of A, which is 0 at best, in place of the share of S.
Cost: two forward-mode products per direction: n directions where the value is exact, `samples` where it is estimated.
The estimate of a ratio of norms is biased by about its relative variance; with `samples=None` it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.losses.jacobian_symmetry import jacobian_directions, jacobian_moments
from assay.probes.view import View

__all__ = ["JacobianAsymmetry", "jacobian_asymmetry"]

NAMES = ("jacobian_asymmetry", "relaxation_residual")


def jacobian_asymmetry(
    field: Callable[[Any], Any], state: Any, samples: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return the antisymmetric share of each sample's Jacobian, (B,); NaN where the Jacobian is 0.

    Args:
        field: From a state to its like, sample by sample.
        state: Where the Jacobian is taken: a tensor (B, ...) or a dict of them.
        samples: Directions of noise; None for all unit vectors, which is exact.
        generator: Source of the noise.

    Example:
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> jacobian_asymmetry(lambda s: s @ turn, torch.zeros(1, 2)).tolist()
        [1.0]
    """
    squared, twice = jacobian_moments(field, state, jacobian_directions(state, samples, generator))
    squared, twice = squared.mean(0), twice.mean(0)
    symmetric, antisymmetric = (part.clamp(min=0).sqrt() for part in (squared + twice, squared - twice))
    return antisymmetric / (symmetric + antisymmetric)


class JacobianAsymmetry:
    """Measures a relaxation network's asymmetry; the model's `vector_field(x)` gives its field and where it settles.

    Args:
        samples: Directions of noise; None for all unit vectors, which is exact but dear in large networks.
        most: Samples of the data that are measured at most.
        seed: Of the noise.

    Raises:
        InvalidInput: If a number is below 1.

    Example:
        >>> from assay.models.relaxation_net import RelaxationNet
        >>> net = RelaxationNet((4,), 3, width=8, feedback_angle=0)
        >>> data = (torch.ones(5, 4), torch.zeros(5, dtype=torch.long))
        >>> round(JacobianAsymmetry().measure(View(net), [data])["jacobian_asymmetry"], 3)
        0.0
    """

    dear = True

    def __init__(self, samples: int | None = 50, most: int = 32, seed: int = 0) -> None:
        if most < 1 or (samples is not None and samples < 1):
            raise InvalidInput(f"samples and most must be at least 1 (samples may be None), not {samples} and {most}")
        self.samples, self.most, self.seed = samples, most, seed
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[Any]) -> dict[str, float]:
        """Return the mean over samples; NaN for a model without a vector field.

        Args:
            view: The network.
            batches: Pairs (inputs, targets); the first `most` samples are used.
        """
        self.skipped = {}
        vector_field: Any = getattr(view.model, "vector_field", None)
        if vector_field is None:
            reason = f"{type(view.model).__name__} has no vector field that relaxes to a fixed point"
            self.skipped = dict.fromkeys(NAMES, reason)
            return dict.fromkeys(NAMES, math.nan)
        field, (state, residual) = vector_field(_first_inputs(batches, self.most))
        generator = torch.Generator().manual_seed(self.seed)
        asymmetry = jacobian_asymmetry(field, state, self.samples, generator).mean()
        values = dict(zip(NAMES, (float(asymmetry), float(residual)), strict=True))
        self.skipped = {name: "the Jacobian is 0 or not finite" for name, v in values.items() if math.isnan(v)}
        return values


def _first_inputs(batches: Iterable[Any], most: int) -> Tensor:
    """Return the inputs of the first `most` samples."""
    found: list[Tensor] = []
    for x, _ in batches:
        found.append(x[: most - sum(map(len, found))])
        if sum(map(len, found)) >= most:
            break
    return torch.cat(found)
