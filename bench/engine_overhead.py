"""Engine overhead: an `Experiment` against the same training in a plain loop, on scikit-learn's digits, in one run.

Both train the same MLP from the same streams for the same epochs and evaluate as often; the rounds alternate, so that
a slow moment of the machine hits both alike. `--quick` takes fewer rounds and epochs.
"""

from __future__ import annotations

import argparse
import time

import torch

from _measure import write_results
from assay.data.batching import batches
from assay.data.tabular import digits
from assay.lab.experiment import Experiment
from assay.models.mlp import MLP
from assay.streams import Streams

STREAMS = Streams("bench", 0)


def plain_loop(epochs: int) -> float:
    """Train without the engine and return the test accuracy."""
    dataset = digits(generator=STREAMS.torch("data"))
    torch.manual_seed(STREAMS.entropy("init"))
    model = MLP(dataset.input_shape, dataset.outputs, width=256, depth=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = STREAMS.torch("order")
    accuracy = 0.0
    for _ in range(epochs):
        for x, y in batches(dataset.train, 128, order):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for split in (dataset.train, dataset.validation, dataset.test):
                scores = model(split.inputs)
                torch.nn.functional.cross_entropy(scores, split.targets).item()
                accuracy = (scores.argmax(-1) == split.targets).double().mean().item()
    return accuracy


def engine(epochs: int) -> float:
    """Train the same with the engine and return the test accuracy."""
    experiment = Experiment(data="digits", model="mlp(width=256, depth=2)", optimizer="adam(lr=1e-3)", epochs=epochs)
    return experiment(STREAMS).metrics["test_accuracy"]


def main() -> None:
    """Measure and write bench/results/engine_overhead.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, epochs = (3, 20) if quick else (15, 60)
    torch.set_num_threads(1)
    arms = {"plain loop": plain_loop, "engine": engine}
    assert plain_loop(2) == engine(2), "the engine must train exactly as the plain loop does"
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds):
        for name in list(arms)[:: 1 if i % 2 else -1]:
            start = time.process_time()
            arms[name](epochs)
            seconds[name].append(time.process_time() - start)
    best = {name: min(values) for name, values in seconds.items()}
    ratios = sorted(e / p for e, p in zip(seconds["engine"], seconds["plain loop"], strict=True))
    rows = [
        {"arm": name, "cpu_seconds_min": best[name], "cpu_seconds_median": sorted(values)[rounds // 2]}
        for name, values in seconds.items()
    ]
    summary = {
        "overhead_median": ratios[rounds // 2] - 1,
        "overhead_of_minima": best["engine"] / best["plain loop"] - 1,
    }
    write_results("engine_overhead", rows=rows, summary=summary, settings={"rounds": rounds, "epochs": epochs})


if __name__ == "__main__":
    main()
