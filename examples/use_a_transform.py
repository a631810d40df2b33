"""A gradient transform in a plain loop: perpGrad on any optimizer, here full-batch AdamW on modular addition."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from assay.optim import PerpGrad

torch.manual_seed(0)
p = 47
a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).unbind(1)
x, y = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], dim=1).float(), (a + b) % p
order = torch.randperm(p * p)
train, test = order[: int(0.7 * p * p)], order[int(0.7 * p * p) :]

model = nn.Sequential(nn.Linear(2 * p, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, p))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

with PerpGrad(optimizer):  # leaving the block gives the plain optimizer back
    for step in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x[train]), y[train]).backward()
        optimizer.step()

accuracy = (model(x[test]).argmax(1) == y[test]).double().mean().item()
print(f"accuracy on pairs never seen {accuracy:.3f}")
