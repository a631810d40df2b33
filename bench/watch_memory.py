"""What watching a network of 50 million parameters takes in memory above training it, probe by probe and all together.

Training is SGD with momentum on a multi-layer perceptron, so parameters, gradients and momentum are resident. Every
row is a fresh process: some training steps, then the high-water mark of the resident memory of one more step, and of
one measurement, above what was resident before it. The aim is 2 GiB. Probes that this version does not have are left
out and listed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

import assay.probes
from _measure import in_fresh_process, peak_memory, write_results
from assay.watch import Watch

PROBES = {
    "neural-collapse": "NeuralCollapse",
    "softmax-collapse": "SoftmaxCollapse",
    "logit-scaling-alignment": "LogitScalingAlignment",
    "layerwise-collapse": "LayerwiseCollapse",
    "activation-sparsity": "ActivationSparsity",
    "gradient-sign": "GradientSign",
    "kernel-target-alignment": "KernelTargetAlignment",
    "weight-movement": "WeightMovement",
    "sharpness": "Sharpness",
}
ALL = "all of these"
GIB = 2**30


def network(width: int, depth: int, inputs: int, classes: int) -> nn.Sequential:
    """Return a multi-layer perceptron; 4352 wide and 4 deep on 3072 inputs it has 52 million parameters."""
    sizes = [inputs, *[width] * (depth - 1)]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def samples(count: int, inputs: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return samples about random class means."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % classes
    means = torch.randn(classes, inputs, generator=generator)
    return means[targets] + torch.randn(count, inputs, generator=generator), targets


def measured(probes: list[str], width: int, count: int) -> dict[str, float]:
    """Train a few steps, then return the peaks of a step and of a measurement."""
    torch.manual_seed(0)
    inputs, classes = 3072, 10
    model, (x, y) = network(width, 4, inputs, classes), samples(count, inputs, classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:128]), y[:128]).backward()
        optimizer.step()

    watch = Watch(model, probes, (x, y))
    for _ in range(2):
        step()
    training = peak_memory(step)
    start = time.process_time()
    watching = peak_memory(lambda: watch.measure(0))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_step": training,
        "watching": watching,
        "cpu_seconds": time.process_time() - start,
    }


def main() -> None:
    """Measure and write bench/results/watch_memory.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("PROBES", "WIDTH", "SAMPLES"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        names, width, count = arguments.one
        print(json.dumps(measured(names.split(","), int(width), int(count))))
        return
    width, count = (128, 256) if arguments.quick else (4352, 512)
    there = [name for name, cls in PROBES.items() if cls in assay.probes.__all__]
    rows: list[dict[str, Any]] = []
    for label, names in {**{name: [name] for name in there}, ALL: there}.items():
        found = in_fresh_process(sys.argv[0], "--one", ",".join(names), width, count)
        rows.append({"probes": label, **found, "watching_gib": found["watching"] / GIB})
    summary = {
        "watching above training, GiB": rows[-1]["watching_gib"],
        "a training step above its resident state, GiB": rows[-1]["training_step"] / GIB,
        "left out": ", ".join(sorted(set(PROBES) - set(there))) or "none",
    }
    settings = {"width": width, "depth": 4, "inputs": 3072, "classes": 10, "samples": count, "threads": 1}
    write_results("watch_memory", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
