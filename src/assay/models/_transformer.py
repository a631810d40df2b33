"""What the small transformers have in common: attention, and the pre-norm block x + f(norm(x))."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.models._layers import linear

__all__ = ["Attention", "PreNormBlock"]


class Attention(nn.Module):
    """Multi-head self-attention of tokens (B, T, d); causal: no token sees a later one."""

    def __init__(self, width: int, heads: int, generator: torch.Generator | None, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.projection = linear(width, 3 * width, generator=generator)
        self.output = linear(width, width, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.projection(tokens).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class PreNormBlock(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them."""

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), attention
        self.mlp_norm, self.mlp = nn.LayerNorm(width), mlp

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))
