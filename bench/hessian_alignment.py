"""Hessian alignment with closed forms against double backward, forward and backward pass of one step, on one thread.

The references keep graphs, as the official DomainBed code does: HGP as |g| grad |g| per domain and of the mean loss,
and Hutchinson with 300 random signs for each of them (20 on full batches). Closed forms must agree with the former in
value and gradient; the exact diagonal stands against Hutchinson's estimate, whose limit it is.

Sizes: the official Coloured MNIST (two domains, full batches, a single score) and DomainBed heads on ResNet-50 features
(three domains of 32, 7 and 65 classes). Memory is what tensors take at their highest, from the profiler's trace.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from _measure import interleaved, write_results
from assay.losses._domains import class_scores
from assay.losses.hessian_alignment import hessian_alignment_penalty

Batch = tuple[list[Tensor], list[Tensor], nn.Linear]
SIZES = {  # domains, samples of each, features, scores
    "coloured mnist": (2, 25_000, 390, 1),
    "resnet-50, 7 classes": (3, 32, 2048, 7),
    "resnet-50, 65 classes": (3, 32, 2048, 65),
}


def batch(domains: int, samples: int, features: int, scores: int) -> Batch:
    """Return features, labels and a head; features need gradients, as a network's do."""
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(samples, features, generator=generator).relu_().requires_grad_() for _ in range(domains)]
    y = [torch.randint(max(scores, 2), (samples,), generator=generator) for _ in range(domains)]
    head = nn.Linear(features, scores)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / features**0.5)
    return z, y, head


def _gradient(loss: Tensor, head: nn.Linear) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()), create_graph=True)])


def _product(gradient: Tensor, head: nn.Linear) -> Tensor:
    return gradient.norm() * _gradient(gradient.norm(), head)


def _diagonal(gradient: Tensor, head: nn.Linear, probes: int, generator: torch.Generator) -> Tensor:
    total = torch.zeros_like(gradient)
    for _ in range(probes):
        r = 2.0 * torch.randint(2, gradient.shape, generator=generator) - 1
        total = total + r * _gradient(gradient @ r, head)
    return total / probes


def with_graphs(data: Batch, curvature: Callable[[Tensor, nn.Linear], Tensor]) -> Tensor:
    """The penalty by double backward, the mean loss's vectors detached."""
    z, y, head = data
    losses = [F.cross_entropy(class_scores(head(a)), b) for a, b in zip(z, y, strict=True)]
    mean = _gradient(torch.stack(losses).mean(), head)
    reference, mean = curvature(mean, head).detach(), mean.detach()
    gradients = [_gradient(loss, head) for loss in losses]
    terms = [(curvature(g, head) - reference).square().sum() + (g - mean).square().sum() for g in gradients]
    return torch.stack(terms).mean()


def step(penalty: Callable[[Batch], Tensor], data: Batch) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the penalty and its gradient by features and head."""
    value = penalty(data)
    return value.detach(), torch.autograd.grad(value, [*data[0], *data[2].parameters()])


def candidates(probes: int) -> dict[str, Callable[[Batch], Tensor]]:
    """Return what is compared, by name; each reference stands before the closed form that replaces it."""

    def hutchinson(data: Batch) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return with_graphs(data, functools.partial(_diagonal, probes=probes, generator=generator))

    return {
        "hgp, double backward": lambda data: with_graphs(data, _product),
        "hgp, closed form": lambda data: hessian_alignment_penalty(*data),
        "hutchinson, double backward": hutchinson,
        "exact diagonal, closed form": lambda data: hessian_alignment_penalty(*data, kind="diagonal"),
    }


def tensor_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes that tensors made by a call take at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    current = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def check(compared: dict[str, Callable[[Batch], Tensor]], data: Batch) -> None:
    """Fail unless HGP's two ways agree in value and gradient."""
    reference, ours = (step(compared[f"hgp, {way}"], data) for way in ("double backward", "closed form"))
    for a, b in zip((reference[0], *reference[1]), (ours[0], *ours[1]), strict=True):
        assert torch.allclose(a, b, rtol=1e-2, atol=1e-3 * a.abs().max().item()), (a - b).abs().max()


def main() -> None:
    """Measure and write bench/results/hessian_alignment.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    probes, rounds = (3, 2) if quick else (300, 3)
    rows, summary = [], {}
    for size, shape in SIZES.items():
        samples = shape[1] // 100 if quick and shape[1] > 1000 else shape[1]
        data = batch(shape[0], samples, *shape[2:])
        compared = candidates(min(probes, 20) if samples > 1000 else probes)
        check(compared, data)
        for reference, ours in (list(compared)[:2], list(compared)[2:]):
            calls = {name: functools.partial(step, compared[name], data) for name in (ours, reference)}
            times = interleaved(calls, rounds)
            memory = {name: tensor_bytes(call) for name, call in calls.items()}
            rows += [{"size": size, "way": name, **times[name], "tensor_bytes": memory[name]} for name in calls]
            method = ours.partition(",")[0]
            summary[f"{size}, {method}: times less time"] = times[reference]["cpu_seconds"] / times[ours]["cpu_seconds"]
            summary[f"{size}, {method}: times less memory"] = memory[reference] / memory[ours]
    settings = {"sizes": {k: list(v) for k, v in SIZES.items()}, "probes": probes, "rounds": rounds, "threads": 1}
    write_results("hessian_alignment", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
