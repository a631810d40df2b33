"""Train a multiplicative diffusion model on images, draw samples from it, and measure them; the additive control too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.data.dataset import Dataset, Split
from assay.data.geometric_brownian import gbm_noise, log_normal_like
from assay.decode.multiplicative_sampling import DaleLangevinSampler, UnconstrainedMultiplicativeSampler
from assay.lab.record import Record
from assay.lab.resources import check_deadline
from assay.losses.multiplicative_score_matching import MultiplicativeDSM
from assay.models.multiplicative_score_net import MultiplicativeScoreNet
from assay.names import resolve
from assay.papers.dale_langevin.frechet import copy_rate, feature_classifier, frechet_distance
from assay.streams import Streams

__all__ = ["SPACES", "generate", "log_normal", "turned_signs"]

# What a pixel p in [0, 1] becomes before noise multiplies it, and how it comes back. Noise that multiplies 2^p is noise
# that is added to p: the variance-exploding diffusion of pixels, with the same network, loss and sampler. Both put pixels
# into [1, 2], so that the noise has the same size beside the range of logarithms.
SPACES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "multiplicative": (lambda p: 1 + p, lambda x: x.clamp(1, 2) - 1),
    "additive": (torch.exp2, lambda x: x.log2().clamp(0, 1)),
}


def generate(
    streams: Streams,
    *,
    data: str,
    space: str,
    sigma: float,
    weighting: str,
    width: int,
    depth: int,
    steps: int,
    batch_size: int,
    lr: float,
    ema: float,
    levels: int,
    samples: int,
    feature_epochs: int,
) -> Record:
    """Train one network and sample from it.

    Args:
        streams: "data" draws the images, "features" the classifier, "init" the network's weights, "order" the
            batches, "noise" times and noise of training, "sample" the start and the noise of sampling.
        data: A loader of `assay.data` by name, of images in 10 classes.
        space: One of `SPACES`.
        sigma: Volatility; what is added to pixels has the deviation sigma / log 2.
        weighting: Of the loss; see `MultiplicativeDSM`.
        width: Units of the network's hidden layers.
        depth: Its residual layers.
        steps: Of Adam.
        batch_size: Images per step, drawn with replacement.
        lr: Adam's learning rate at the start; it falls to 0 by a straight line.
        ema: Share of the newest weights in the running average that samples are drawn from.
        levels: N of the samplers.
        samples: Images to draw, and as many training images for the floor.
        feature_epochs: Training of the classifier whose features the Frechet distance (FD) is in.

    Returns:
        `fd` of Dale-Langevin samples from test images, `fd_over_prior` (relative to the sampler's start), `log_fd`,
        `fd_prior`, `fd_floor` (training images), `confidence`, `confidence_data`, `copy_rate`, `smallest` value of all
        trajectories (additive: pixel), and for the multiplicative space the same of unconstrained samples, of which only
        `smallest_unconstrained` is left where values turn negative and then to NaN; pictures.

    Raises:
        FloatingPointError: If the loss or a Dale-Langevin sample is not finite.
    """
    train, test = _pixels(resolve("data", data)(generator=streams.torch("data")))
    encode, decode = SPACES[space]
    x0 = encode(train.inputs)
    net = MultiplicativeScoreNet(
        tuple(x0.shape[1:]),
        sigma,
        width,
        depth,
        log_mean=x0.log().mean().item(),
        log_deviation=x0.log().std().item(),
        generator=streams.torch("init"),
    )
    criterion = MultiplicativeDSM(sigma, weighting=weighting, generator=streams.torch("noise"))
    _fit(net, criterion, x0, streams.torch("order"), steps=steps, batch_size=batch_size, lr=lr, ema=ema)
    draws = streams.torch("sample")
    start = log_normal_like(gbm_noise(x0, 1.0, sigma, generator=draws), samples, draws)
    measures = _measures(train, test, samples, feature_epochs, streams.torch("features"))
    prior = measures(decode(start))
    metrics = {"fd_prior": prior["fd"], "fd_floor": measures(train.inputs[-samples:])["fd"]}
    pictures = {"data": test.inputs, "start": decode(start)}
    for suffix, sampler in _samplers(net, space, sigma, levels):
        found, smallest = _sample(sampler, start, draws)
        if not torch.isfinite(found).all():
            if suffix:  # a negative value has no logarithm for the network: that sampler is known for it
                metrics[f"smallest{suffix}"] = smallest
                continue
            raise FloatingPointError(f"samples are not finite after a smallest value of {smallest:g}")
        images = decode(found)
        pictures[f"samples{suffix.replace('_', ', ')}"] = images
        own = measures(images) | {"smallest": smallest if space == "multiplicative" else math.log2(smallest)}
        metrics |= {f"{name}{suffix}": value for name, value in own.items()}
    metrics |= {"fd_over_prior": metrics["fd"] / metrics["fd_prior"], "log_fd": math.log(metrics["fd"])}
    metrics["confidence_data"] = measures(test.inputs)["confidence"]
    return Record(metrics=metrics, pictures={name: tiles(images) for name, images in pictures.items()})


def _pixels(data: Dataset) -> tuple[Split, Split]:
    """Return training and test images with their pixels back in [0, 1]."""
    low, high = data.train.inputs.min(), data.train.inputs.max()
    train, test = (Split(((s.inputs - low) / (high - low)).clamp(0, 1), s.targets) for s in (data.train, data.test))
    return train, test


def _fit(
    net: nn.Module,
    criterion: nn.Module,
    x0: Tensor,
    order: torch.Generator,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    ema: float,
) -> None:
    """Train the network and leave the running average of its weights in it."""
    parameters: list[Tensor] = list(net.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        chosen = torch.randint(len(x0), (batch_size,), generator=order)
        optimizer.zero_grad()
        loss = criterion(net, x0[chosen])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, max(ema, 1 / (step + 1)))
        if step % 100 == 0:
            check_deadline()
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()}")
    with torch.no_grad():
        torch._foreach_copy_(parameters, averages)
    net.eval().requires_grad_(False)


def _samplers(net: nn.Module, space: str, sigma: float, levels: int) -> Iterator[tuple[str, DaleLangevinSampler]]:
    """Yield (suffix of the metrics, sampler) for a space; a step in 2^p itself would be no additive diffusion."""
    yield "", DaleLangevinSampler(net, sigma, n_steps=levels)
    if space == "multiplicative":
        yield "_unconstrained", UnconstrainedMultiplicativeSampler(net, sigma, n_steps=levels)


def _sample(sampler: DaleLangevinSampler, x: Tensor, draws: torch.Generator) -> tuple[Tensor, float]:
    """Return samples and the smallest value on their way, the start included."""
    smallest, path = x.min().item(), sampler.trajectory(x, generator=draws)
    for x in path:
        smallest = min(smallest, x.min().item())
    return x, smallest


def _measures(
    train: Split, test: Split, samples: int, epochs: int, generator: torch.Generator
) -> Callable[[Tensor], dict[str, float]]:
    """Return a function from images to their distance from test images, the classifier's confidence and the copies."""
    features, classifier = feature_classifier(train, epochs, generator)
    reference, flat = features(test.inputs), [s.inputs.flatten(1) for s in (train, test)]

    def measures(images: Tensor) -> dict[str, float]:
        return {
            "fd": frechet_distance(features(images), reference),
            "confidence": float(classifier(images).softmax(dim=1).amax(dim=1).mean()),
            "copy_rate": copy_rate(images[:samples].flatten(1), flat[0], flat[1]),
        }

    return measures


def tiles(images: Tensor, side: int = 6, zoom: int = 2) -> np.ndarray:
    """Return the first images (n, 1, H, W) in [0, 1] as one picture, uint8 (side H zoom, side W zoom)."""
    height, width = images.shape[2:]
    sheet = torch.zeros(side * side, height, width)
    shown = images[: side * side, 0]
    sheet[: len(shown)] = shown
    page = sheet.view(side, side, height, width).transpose(1, 2).reshape(side * height, side * width)
    page = page.repeat_interleave(zoom, dim=0).repeat_interleave(zoom, dim=1)
    return (255 * page).round().to(torch.uint8).numpy()


def log_normal(
    streams: Streams, *, sampler: str, mean: float, deviation: float, sigma: float, levels: int, count: int
) -> dict[str, float]:
    """Sample from log-normal data by its exact scores.

    Args:
        streams: "sample" draws start and noise.
        sampler: A class of `assay.decode` by name.
        mean: Of the data's logarithm.
        deviation: Likewise.
        sigma: Volatility; mu is sigma^2 / 2.
        levels: N.
        count: Samples.

    Returns:
        By how much mean and deviation of the samples' logarithm miss those of the data, in absolute value.
    """
    *_, last = _log_normal_path(streams.torch("sample"), sampler, mean, deviation, sigma, levels, count)
    logs = last.log()
    return {
        "log_mean_error": abs(logs.mean().item() - mean),
        "log_deviation_error": abs(logs.std().item() - deviation),
    }


def turned_signs(
    streams: Streams, *, sampler: str, mean: float, deviation: float, sigma: float, levels: int, count: int
) -> dict[str, float]:
    """Sample as `log_normal` does and count the samples that are not above 0 at every step; arguments as there.

    Returns:
        `turned`, their share.
    """
    turned = torch.zeros(count, 1, dtype=torch.bool)
    for x in _log_normal_path(streams.torch("sample"), sampler, mean, deviation, sigma, levels, count):
        turned |= ~(x > 0)  # a value below 0 has no score and is NaN from then on
    return {"turned": turned.double().mean().item()}


def _log_normal_path(
    draws: torch.Generator, sampler: str, mean: float, deviation: float, sigma: float, levels: int, count: int
) -> Iterator[Tensor]:
    """Yield samples (count, 1) of log-normal data after each step, by exact scores."""
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (DaleLangevinSampler, UnconstrainedMultiplicativeSampler)}

    def scaled_score(x: Tensor, t: Tensor) -> Tensor:
        return -1 - (x.log() - mean) / (deviation**2 + sigma**2 * t[:, None])

    z = torch.randn(count, 1, generator=draws, dtype=torch.float64)
    start = torch.exp(mean + math.sqrt(deviation**2 + sigma**2) * z)
    yield from kinds[sampler](scaled_score, sigma, n_steps=levels).trajectory(start, generator=draws)
