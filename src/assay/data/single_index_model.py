"""Single-index data: targets that depend on one hidden direction of Gaussian inputs, through a link, plus noise.

Kothapalli et al. (2025, arXiv:2406.04657), data of the official code: y = link(x beta) + noise eps with x ~ N(0, I_d),
eps ~ N(0, 1) and beta uniform on the unit sphere; link softplus, noise 0.3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.data.dataset import Dataset, Split
from assay.errors import InvalidInput

__all__ = ["SingleIndexTeacher", "single_index"]

_LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": F.softplus,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sign": torch.sign,
    "linear": lambda z: z,
}


class SingleIndexTeacher:
    """Draws inputs and targets with one hidden direction.

    Args:
        d: Dimension of the inputs, at least 1.
        link: "softplus", "relu", "tanh", "sign" or "linear".
        noise: Standard deviation of the targets' noise, 0 or more.
        generator: Draws the direction; None is a fixed draw.

    Attributes:
        direction: beta (d,), of length 1.

    Raises:
        InvalidInput: If an argument is out of range.

    Example:
        >>> teacher = SingleIndexTeacher(5, noise=0.0)
        >>> x, y = teacher.sample(3, torch.Generator().manual_seed(1))
        >>> torch.equal(y[:, 0], F.softplus(x @ teacher.direction))
        True
    """

    def __init__(
        self, d: int, link: str = "softplus", noise: float = 0.3, generator: torch.Generator | None = None
    ) -> None:
        if d < 1 or not noise >= 0 or link not in _LINKS:
            raise InvalidInput(
                f"expected d >= 1, noise >= 0 and a link of {', '.join(_LINKS)}; got {d}, {noise} and {link!r}"
            )
        direction = torch.randn(d, generator=generator or torch.Generator().manual_seed(0))
        self.direction = direction / direction.norm()
        self.link, self.noise = link, noise

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs (n, d) and targets (n, 1), float32."""
        x = torch.randn(n, len(self.direction), generator=generator)
        eps = torch.randn(n, generator=generator)
        return x, (_LINKS[self.link](x @ self.direction) + self.noise * eps)[:, None]


def single_index(
    *,
    d: int = 20,
    link: str = "softplus",
    noise: float = 0.3,
    train: int = 300,
    validation: int = 150,
    test: int = 150,
    generator: torch.Generator | None = None,
) -> Dataset:
    """Gaussian inputs whose targets depend on one hidden direction; regression, not standardised.

    Args:
        d: Dimension of the inputs.
        link: See `SingleIndexTeacher`.
        noise: Standard deviation of the targets' noise.
        train: Samples for training.
        validation: Samples for validation.
        test: Samples for testing.
        generator: Draws the direction first, then the samples; None is a fixed draw.

    Returns:
        Inputs (N, d), targets (N, 1).

    Raises:
        InvalidInput: If a number is below its minimum.

    Example:
        >>> single_index(d=7).outputs
        1
    """
    generator = generator or torch.Generator().manual_seed(0)
    teacher = SingleIndexTeacher(d, link, noise, generator)
    first, second, third = (Split(*teacher.sample(max(n, 0), generator)) for n in (train, validation, test))
    return Dataset("single_index", first, second, third, num_classes=None)
