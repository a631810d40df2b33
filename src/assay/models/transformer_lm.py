"""Causal transformer over characters or other tokens: scores for the next token at every position.

Pre-norm blocks x + attention(norm(x)), then x + mlp(norm(x)), with learned positions: GPT-2's layout (Radford et al.
2019) with one addition, the choice of the MLP's activation.

Shapes: tokens (B, T) with T <= context, width d, vocabulary V; scores (B, T, V). Children: `embedding`, `block1` ...
`block<depth>`, `norm`, `head`; an MLP is `mlp` of its block: Linear(d, hidden), activation, Linear(hidden, d).

Departures: no dropout, no cache for decoding, PyTorch's initialisation of linear layers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._layers import BlockSequential, linear
from assay.models._transformer import Attention, PreNormBlock
from assay.names import resolve

__all__ = ["TransformerLM"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class _Embedding(nn.Module):
    """Tokens (B, T) as vectors (B, T, d): one per token of the vocabulary plus one per position."""

    def __init__(self, context: int, vocabulary: int, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(vocabulary, width))
        self.position = nn.Parameter(torch.empty(context, width))
        for table in (self.token, self.position):
            nn.init.normal_(table, std=0.02, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] > len(self.position):
            raise InvalidInput(
                f"expected integer tokens (samples, at most {len(self.position)}), got {tokens.dtype} "
                f"{tuple(tokens.shape)}"
            )
        return self.token[tokens] + self.position[: tokens.shape[1]]


class TransformerLM(BlockSequential):
    """Transformer language model.

    Args:
        input_shape: Shape of one sample: (context,), the largest number of tokens.
        outputs: Size V of the vocabulary, of inputs and scores alike.
        width: d, a multiple of the heads.
        depth: Number of blocks.
        heads: Of attention.
        hidden: Units inside an MLP; 4 d if not given.
        activation: Of the MLPs: "gelu", "relu", "silu", a name of `assay.nn` such as "top-k(k=32)", or a callable that
            returns a module.
        tie_weights: Whether the head's weight is that of the tokens' embedding.
        generator: Draws the initial weights; None is torch's global generator.

    Raises:
        InvalidInput: If a size is below 1, the heads don't divide the width, or `input_shape` is not (context,).
        UnknownName: If there is no such activation.

    Example:
        >>> model = TransformerLM((16,), 65, width=32, depth=1, activation="top-k(k=8)")
        >>> model(torch.zeros(2, 16, dtype=torch.int64)).shape
        torch.Size([2, 16, 65])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 2,
        hidden: int | None = None,
        activation: str | Callable[[], nn.Module] = "gelu",
        *,
        tie_weights: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        shape, hidden = tuple(input_shape), 4 * width if hidden is None else hidden
        if len(shape) != 1 or min(*shape, outputs, width, depth, heads, hidden) < 1 or width % heads:
            raise InvalidInput(
                f"expected input_shape (context,), sizes of at least 1 and heads that divide the width; got {shape}, "
                f"{outputs} outputs, {width=}, {depth=}, {heads=}, {hidden=}"
            )
        embedding = _Embedding(shape[0], outputs, width, generator)
        children: OrderedDict[str, nn.Module] = OrderedDict(embedding=embedding)
        for i in range(1, depth + 1):
            attention = Attention(width, heads, generator, causal=True)
            enter = linear(width, hidden, generator=generator)
            mlp = nn.Sequential(enter, _activation(activation), linear(hidden, width, generator=generator))
            children[f"block{i}"] = PreNormBlock(width, attention, mlp)
        children["norm"] = nn.LayerNorm(width)
        head = children["head"] = linear(width, outputs, bias=False, generator=generator)
        if tie_weights:
            head.weight = embedding.token
        super().__init__(children, shape)


def _activation(activation: str | Callable[[], nn.Module]) -> nn.Module:
    make = ACTIVATIONS[activation] if activation in ACTIVATIONS else resolve("nn", activation)
    return make()
