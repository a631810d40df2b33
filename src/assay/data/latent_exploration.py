"""New inputs near given ones, found by moving in the latent space of a generator.

Paper: "Teacher Guided Training" (arXiv:2208.06825), its random and gradient-based exploration of the data manifold.

    random     x~ = Dec(Enc(x) + sigma e),  e ~ N(0, I)
    gradient   z = Enc(x) + sigma e;  `steps` times  z <- z + eta g / |g|;  x~ = Dec(z)
               g = d/dz KL(softmax h(Dec z) || softmax f(Dec z)),  teacher h, student f

The second looks for inputs on the generator's manifold about which student and teacher disagree.

Shapes: B samples; inputs (B, ...), codes (B, d).

Departures: steps have the length eta for each sample, as |g| falls by orders of magnitude while the student learns (the
paper scales g itself); noise before the first step keeps repeated samples apart. Cost: one pass of encoder and decoder;
per step a forward and a backward pass of decoder, student and teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses.distillation import distillation_loss

__all__ = ["LatentExploration"]


class LatentExploration:
    """A batch of new inputs from a batch of inputs; no gradient reaches any network or the result.

    Args:
        encoder: Maps inputs (B, ...) to codes (B, d); of a variational one, take the mean.
        decoder: Maps codes to inputs.
        sigma: Deviation of the noise in each latent coordinate, 0 or larger; a VAE's prior has 1.
        eta: Length of a step towards disagreement, in the same unit, 0 or larger; 0 explores at random.
        steps: Of such steps, at least 1.
        generator: Draws the noise; None is a fixed one of seed 0. It must live where the codes do.

    Raises:
        InvalidInput: If a number is out of its range.

    Example:
        >>> explore = LatentExploration(nn.Flatten(), nn.Unflatten(1, (1, 2)), sigma=0.1)
        >>> explore(torch.zeros(3, 1, 2)).shape
        torch.Size([3, 1, 2])
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        decoder: Callable[[Tensor], Tensor],
        sigma: float = 0.5,
        eta: float = 0.0,
        steps: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if not (sigma >= 0 and eta >= 0 and steps >= 1):
            raise InvalidInput(f"expected sigma >= 0, eta >= 0 and steps >= 1; got {sigma}, {eta} and {steps}")
        self.encoder, self.decoder = encoder, decoder
        self.sigma, self.eta, self.steps = sigma, eta, steps
        self.generator = generator or torch.Generator().manual_seed(0)

    def __call__(
        self,
        x: Tensor,
        student: Callable[[Tensor], Tensor] | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return new inputs in the shape that the decoder gives.

        Args:
            x: Inputs (B, ...).
            student: Maps inputs to scores (B, K); needed where eta is above 0. Networks run in eval mode here.
            teacher: Likewise.

        Raises:
            InvalidInput: If steps are to be made without a student or a teacher, or their classes differ.
        """
        with torch.no_grad(), _evaluating(self.encoder, self.decoder, student, teacher):
            z = self.encoder(x)
            noise = torch.randn(z.shape, generator=self.generator, dtype=z.dtype, device=z.device)
            z = z + self.sigma * noise
            if self.eta > 0:
                if student is None or teacher is None:
                    raise InvalidInput("exploring by gradient (eta > 0) needs a student and a teacher; pass both")
                for _ in range(self.steps):
                    z = z + self.eta * self._direction(z, student, teacher)
            return self.decoder(z)

    def _direction(self, z: Tensor, student: Callable[[Tensor], Tensor], teacher: Callable[[Tensor], Tensor]) -> Tensor:
        """Return each sample's direction (B, d) of steepest disagreement; 0 where the gradient is."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x = self.decoder(z)
            (g,) = torch.autograd.grad(distillation_loss(student(x), teacher(x), reduction="sum"), z)
        return nn.functional.normalize(g, dim=1, eps=torch.finfo(g.dtype).tiny)


@contextmanager
def _evaluating(*parts: object) -> Iterator[None]:
    """Run networks in eval mode, without moving statistics, and put every module's mode back."""
    modules = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
    modes = [m.training for m in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
