"""Two-layer ReLU network of the theory: a tiny random first layer that is trained, a top layer of fixed signs.

Xu, Wang, Frei, Vardi, Hu (2024, arXiv:2310.02541), section on the network:

    f(x) = sum_j a_j relu(<w_j, x>),   w_j ~ N(0, omega^2 I_p),   a_j = +-1 / sqrt(m) with equal probability

Shapes: B samples of p features, m hidden units; hidden weight (m, p), head weight (2, m).

Departure: the scores of the two classes are (-f / 2, f / 2), so that cross-entropy is the logistic loss of the margin
y f with y in {-1, +1}, and probes and losses for classifiers apply as they are. Cost: 2 B m p flops.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models._layers import BlockSequential

__all__ = ["TwoLayerReLU"]


class TwoLayerReLU(BlockSequential):
    """A hidden layer without biases under a head of fixed signs; children `flatten`, `block1` and `head`.

    Args:
        input_shape: Shape of one sample.
        outputs: Number of classes; the network is defined for 2.
        width: m, the hidden units.
        init_std: omega, the standard deviation of an initial hidden weight; 0 would leave every neuron dead.
        trainable_top: Whether the head is trained too.
        generator: Draws weights and signs; None is torch's global generator, as in `nn.Linear`.

    Raises:
        InvalidInput: If a size or `init_std` is out of range.

    Example:
        >>> scores = TwoLayerReLU((6,), width=8, generator=torch.Generator().manual_seed(0))(torch.ones(3, 6))
        >>> scores.shape, bool((scores.sum(dim=1) == 0).all())
        (torch.Size([3, 2]), True)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int = 2,
        width: int = 200,
        *,
        init_std: float = 1e-3,
        trainable_top: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        p = math.prod(input_shape)
        if outputs != 2:
            raise InvalidInput(f"TwoLayerReLU tells two classes apart, not {outputs}; use MLP for more")
        if p < 1 or width < 1 or not init_std > 0:
            raise InvalidInput(f"expected input and width of at least 1 and init_std > 0; got {p}, {width}, {init_std}")
        hidden = nn.utils.skip_init(nn.Linear, p, width, bias=False)
        head = nn.utils.skip_init(nn.Linear, width, 2, bias=False)
        with torch.no_grad():
            hidden.weight.normal_(std=init_std, generator=generator)
            signs = 2.0 * torch.randint(2, (width,), generator=generator) - 1
            head.weight.copy_(torch.stack([-signs, signs]) / (2 * math.sqrt(width)))
        head.weight.requires_grad_(trainable_top)
        block = nn.Sequential(hidden, nn.ReLU())
        super().__init__(OrderedDict(flatten=nn.Flatten(), block1=block, head=head), tuple(input_shape))
