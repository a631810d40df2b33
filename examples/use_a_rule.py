"""A learning rule in a plain loop: Mono-Forward trains every block by its own local loss, without backpropagation."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from assay.rules import MonoForward

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train, test = slice(0, 1300), slice(1300, None)

model = nn.Sequential(
    nn.Sequential(nn.Linear(64, 128), nn.ReLU()),
    nn.Sequential(nn.Linear(128, 128), nn.ReLU()),
)
rule = MonoForward(model, num_classes=10)
optimizer = torch.optim.Adam(rule.parameters(), lr=3e-3)

for epoch in range(20):
    for chosen in torch.randperm(1300).split(64):
        optimizer.zero_grad()
        logs = rule.backward(x[train][chosen], y[train][chosen])  # in place of loss.backward()
        optimizer.step()
        rule.after_step()

accuracy = (rule.predict(x[test]).argmax(1) == y[test]).double().mean().item()
print(f"test accuracy {accuracy:.3f}")
