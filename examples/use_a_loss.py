"""A loss in a plain loop: focal loss on scikit-learn's digits, with nothing of Assay but the loss itself."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from assay.losses import FocalLoss

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train, test = slice(0, 1300), slice(1300, None)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
criterion = FocalLoss(gamma=3.0)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for epoch in range(20):
    for chosen in torch.randperm(1300).split(64):
        optimizer.zero_grad()
        loss = criterion(model(x[train][chosen]), y[train][chosen])
        loss.backward()
        optimizer.step()

accuracy = (model(x[test]).argmax(1) == y[test]).double().mean().item()
print(f"test accuracy {accuracy:.3f}")
