"""What watching activations costs beside the forward pass, and what an ensemble in one batch saves over a loop.

One thread. Activation sparsity and gradient sign of a small transformer (ReLU MLPs four times the width), against its
plain forward pass and its forward and backward pass. Training steps of twelve networks: one batched step against twelve
in a loop; both must reach the same weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _measure import interleaved, write_results
from assay.models.ensemble import Ensemble
from assay.models.mlp import MLP
from assay.models.transformer_lm import TransformerLM
from assay.probes.activation_sparsity import ActivationSparsity
from assay.probes.gradient_sign import GradientSign
from assay.probes.view import View

MEMBERS, BATCH, FEATURES, CLASSES = 12, 100, 196, 10


def watching(width: int, windows: int) -> dict[str, Callable[[], object]]:
    """Return the probes and what they are compared with."""
    generator = torch.Generator().manual_seed(0)
    model = TransformerLM((64,), 65, width, 2, 2, activation="relu", generator=generator)
    x, y = (torch.randint(65, (windows, 64), generator=generator) for _ in range(2))
    view, batch = View(model), [(x, y)]

    def step() -> None:
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        model.zero_grad()

    return {
        "forward": torch.no_grad()(lambda: model(x)),
        "forward and backward": step,
        "activation sparsity": lambda: ActivationSparsity().measure(view, batch),
        "activation sparsity, flops counted": lambda: ActivationSparsity(count_flops=True).measure(view, batch),
        "gradient sign": lambda: GradientSign().measure(view, batch),
    }


def ensembles(width: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Return five training steps in one batch and in a loop; each call starts again."""

    def member(generator: torch.Generator) -> nn.Module:
        return MLP((FEATURES,), CLASSES, width=width, depth=1, generator=generator)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, MEMBERS, BATCH, FEATURES, generator=generator)
    targets = torch.randint(CLASSES, (5, MEMBERS, BATCH), generator=generator)

    def together() -> list[Tensor]:
        ensemble = Ensemble(member, MEMBERS)
        optimizer = torch.optim.Adam(ensemble.parameters())
        for x, y in zip(inputs, targets, strict=True):
            optimizer.zero_grad()
            scores = ensemble.member_scores(x, shared=False)
            (F.cross_entropy(scores.flatten(0, 1), y.flatten()) * MEMBERS).backward()
            optimizer.step()
        return [p.detach() for p in ensemble.parameters()]

    def loop() -> list[Tensor]:
        ensemble = Ensemble(member, MEMBERS)
        nets = [ensemble.member(i) for i in range(MEMBERS)]
        for index, net in enumerate(nets):
            optimizer = torch.optim.Adam(net.parameters())
            for x, y in zip(inputs[:, index], targets[:, index], strict=True):
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
        return [torch.stack(parts).detach() for parts in zip(*(net.parameters() for net in nets), strict=True)]

    return {f"ensemble of width {width}, one batch": together, f"ensemble of width {width}, loop": loop}


def main() -> None:
    """Measure and write bench/results/sparsity_and_ensembles.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    width, windows, rounds = (32, 4, 2) if quick else (128, 32, 9)
    times = interleaved(watching(width, windows), rounds, patience=1e9)
    summary = {
        f"{name} / forward": times[name]["cpu_seconds"] / times["forward"]["cpu_seconds"]
        for name in ("activation sparsity", "activation sparsity, flops counted", "gradient sign")
    }
    for hidden in (8,) if quick else (8, 64, 256):
        compared = ensembles(hidden)
        for a, b in zip(*(call() for call in compared.values()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        found = interleaved(compared, rounds, patience=1e9)
        one, loop = (time["cpu_seconds"] for time in found.values())
        summary[f"ensemble of width {hidden}: loop / one batch"] = loop / one
        times |= found
    rows = [{"what": name, **time} for name, time in times.items()]
    settings = {"width": width, "tokens": 64 * windows, "members": MEMBERS, "rounds": rounds, "threads": 1}
    write_results("sparsity_and_ensembles", rows=rows, summary=summary, settings=settings)


if __name__ == "__main__":
    main()
