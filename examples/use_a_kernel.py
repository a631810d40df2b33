"""A fused kernel in a plain loop: the head of a character model, without ever holding the logits of all tokens."""

from __future__ import annotations

import string

import torch
from torch import nn

from assay.kernels import linear_cross_entropy

torch.manual_seed(0)
text = string.__doc__ * 4
alphabet = sorted(set(text))
codes = torch.tensor([alphabet.index(c) for c in text])
context, targets = codes[:-1], codes[1:]

embedding = nn.Embedding(len(alphabet), 32)
body = nn.Sequential(nn.Linear(32, 64), nn.GELU())
head = nn.Linear(64, len(alphabet))
parameters = [*embedding.parameters(), *body.parameters(), *head.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=1e-2)

for step in range(100):
    optimizer.zero_grad()
    hidden = body(embedding(context))
    # in place of F.cross_entropy(head(hidden), targets)
    loss = linear_cross_entropy(hidden, head.weight, targets, linear_bias=head.bias)
    loss.backward()
    optimizer.step()

print(f"loss per character {loss.item():.3f}")
