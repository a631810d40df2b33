"""Watch a model learn in a plain loop: neural collapse on scikit-learn's digits, and a figure of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from assay import Watch

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train, test = slice(0, 1300), slice(1300, None)

model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
watch = Watch(model, probes=["neural-collapse", "softmax-collapse"], data=(x[train], y[train]))

for epoch in range(20):
    for chosen in torch.randperm(1300).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(x[train][chosen]), y[train][chosen]).backward()
        optimizer.step()
    schedule.step()
    values = watch.measure(epoch)
    print(f"epoch {epoch:2d}  nc1 {values['nc1']:.3f}  nc3 {values['nc3']:.3f}  nc4 {values['nc4']:.3f}")

watch.save("watch.json")  # steps and values; assay.history.History.load reads it without the model
watch.plot().savefig("watch.svg")

model.eval()
accuracy = (model(x[test]).argmax(1) == y[test]).double().mean().item()
print(f"test accuracy {accuracy:.3f}")
