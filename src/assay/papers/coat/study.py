"""Are FP8 optimizer states and FP8 activations as good as full ones, and what does dynamic range expansion add?

Paper: arXiv:2410.19313. A small Llama-like decoder learns to predict characters. All arms share weights, data, order and
hyper-parameters; they differ in how AdamW's moments are stored and in whether the layers save FP8 activations. On the
moments of the float32 run, both quantizers are compared directly.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.compress.range_expansion import dequantize_expanded, quantize_expanded
from assay.data.text import TextDataset, stdlib_text, tinyshakespeare
from assay.kernels.rms_normalisation.functional import RMSNorm
from assay.lab import Call, Record, Series, Study
from assay.lab.expectations import above, equivalent, ratio
from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.nn.fp8 import FP8MLP, FP8Linear, FP8RMSNorm
from assay.streams import Streams

__all__ = ["Decoder", "moment_errors", "saved_bytes", "state_bytes", "study", "train"]


class GatedMLP(nn.Module):
    """What `FP8MLP` is in FP8: down(silu(gate(x)) * up(x))."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(features, hidden, bias=False)
        self.up = nn.Linear(features, hidden, bias=False)
        self.down = nn.Linear(hidden, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., features) for x (..., features)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """A pre-norm decoder layer; with `fp8`, all but the attention itself follows the paper's precision flow."""

    def __init__(self, features: int, hidden: int, heads: int, fp8: bool) -> None:
        super().__init__()
        linear, mlp = (FP8Linear, FP8MLP) if fp8 else (nn.Linear, GatedMLP)
        self.attention_norm = FP8RMSNorm(features) if fp8 else RMSNorm(features, eps=1e-5)
        self.queries_keys_values = linear(features, 3 * features, bias=False)
        self.output = linear(features, features, bias=False)
        self.norm = FP8RMSNorm(features) if fp8 else RMSNorm(features, eps=1e-5)
        self.mlp = mlp(features, hidden)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, features) for x (B, T, features)."""
        projected = self.queries_keys_values(self.attention_norm(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected.chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + self.output(attended)
        return x + self.mlp(self.norm(x))


class Decoder(nn.Module):
    """A character model: embeddings, decoder layers, norm and head (both in full precision).

    Args:
        vocabulary: Number of characters.
        context: Largest number of positions.
        features: Width of the residual stream.
        hidden: Width inside the MLPs.
        heads: Attention heads.
        layers: Decoder layers.
        fp8: Whether the layers compute with and save FP8 activations.
    """

    def __init__(
        self, vocabulary: int, context: int, features: int, hidden: int, heads: int, layers: int, fp8: bool
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, features)
        self.positions = nn.Parameter(torch.randn(context, features) / 10)
        self.layers = nn.Sequential(*(Layer(features, hidden, heads, fp8) for _ in range(layers)))
        self.norm = nn.RMSNorm(features, eps=1e-5)
        self.head = nn.Linear(features, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores (B, T, vocabulary) for tokens (B, T)."""
        return self.head(self.norm(self.layers(self.characters(tokens) + self.positions[: tokens.shape[1]])))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimizer's moments, with their scales; step counters aside."""
    tensors = (v for state in optimizer.state.values() for name, v in state.items() if name != "step")
    return sum(tensor.nbytes for tensor in tensors)


def saved_bytes(layer: nn.Module, features: int, tokens: int = 256) -> int:
    """Return the bytes of distinct storages that a layer in bfloat16 saves for backward, parameters aside."""
    layer = layer.to(torch.bfloat16)
    ignored = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    x = torch.zeros(1, tokens, features, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in ignored)


def moment_errors(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Quantize an optimizer's float32 moments with and without expansion, in E4M3 and groups of 128.

    Returns:
        Averages over all matrices: `square_error_...`, the mean relative error of the second moment where it is not
        zero, and `direction_error_...`, the median squared error of m / (sqrt(v) + 1e-8); `..._gain` is plain / expanded.
    """
    matrices = [s for p, s in optimizer.state.items() if p.dim() >= 2]
    errors: dict[str, float] = {}
    for name, expand in (("expanded", True), ("plain", False)):
        square, direction = 0.0, 0.0
        for state in matrices:
            m, v = state["exp_avg"], state["exp_avg_sq"]
            m_, v_ = (dequantize_expanded(quantize_expanded(x, expand=expand)) for x in (m, v))
            there = v > 0
            square += float((v_[there] / v[there] - 1).abs().mean())
            difference = m_ / (v_.sqrt() + 1e-8) - m / (v.sqrt() + 1e-8)
            direction += float(difference[there].square().median())
        errors |= {f"square_error_{name}": square / len(matrices), f"direction_error_{name}": direction / len(matrices)}
    for kind in ("square", "direction"):
        errors[f"{kind}_error_gain"] = errors[f"{kind}_error_plain"] / errors[f"{kind}_error_expanded"]
    return errors


VALIDATION = 200  # windows


@dataclass(frozen=True)
class Setting:
    """What a scale decides."""

    data: str
    windows: int
    context: int
    features: int
    hidden: int
    heads: int
    layers: int
    batch_size: int
    steps: int
    evaluations: int
    lr: float


SETTINGS = {
    "smoke": Setting("stdlib-text", 200, 16, 16, 32, 2, 1, 8, 6, 2, 4e-3),
    "desk": Setting("tinyshakespeare", 8000, 64, 64, 176, 4, 2, 16, 200, 4, 8e-3),
    "paper": Setting("tinyshakespeare", 3000, 256, 384, 1024, 6, 6, 32, 5000, 20, 1e-3),
}


def _rate(step: int, steps: int, lr: float) -> float:
    """Return the learning rate: a warm-up over a tenth of the steps, then a straight line to a tenth of the peak."""
    warm_up = max(1, steps // 10)
    return lr * min((step + 1) / warm_up, 1 - 0.9 * (step + 1 - warm_up) / max(1, steps - warm_up))


@torch.no_grad()
def _loss(model: nn.Module, dataset: TextDataset) -> float:
    parts = [
        F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
        for x, y in zip(dataset.validation.inputs.split(50), dataset.validation.targets.split(50), strict=True)
    ]
    return float(sum(parts) / dataset.validation.targets.numel())


def train(
    streams: Streams,
    *,
    optimizer: str,
    activations: str,
    data: str,
    windows: int,
    batch_size: int,
    steps: int,
    evaluations: int,
    lr: float,
    **sizes: Any,
) -> Record:
    """Train one decoder and return its losses, the moments' quantization errors and the bytes of states and activations.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    load = {"tinyshakespeare": tinyshakespeare, "stdlib-text": stdlib_text}[data]
    dataset = load(
        context=sizes["context"], train=windows, validation=VALIDATION, test=1, generator=streams.torch("data")
    )
    fp8, order = activations == "fp8", streams.torch("order")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.entropy("init"))
        model = Decoder(len(dataset.vocabulary), **sizes, fp8=fp8)
    steppers = resolve("optim", optimizer)(model.parameters(), lr=lr)
    curve, errors = {}, []
    for step in range(steps):
        check_deadline()
        chosen = torch.randint(len(dataset.train.inputs), (batch_size,), generator=order)
        scores = model(dataset.train.inputs[chosen])
        loss = F.cross_entropy(scores.flatten(0, 1), dataset.train.targets[chosen].flatten())
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError(f"the loss is {float(loss.detach())} at step {step}")
        steppers.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steppers.param_groups[0]["lr"] = _rate(step, steps, lr)
        steppers.step()
        if (step + 1) % (steps // evaluations) == 0:
            curve[float(step + 1)] = _loss(model, dataset)
            if isinstance(steppers, torch.optim.AdamW):
                errors.append(moment_errors(steppers))
    averages = {name: sum(e[name] for e in errors) / len(errors) for name in (errors[0] if errors else ())}
    parameters = sum(p.numel() for p in model.parameters())
    layer = model.layers[0]
    half = nn.Sequential(layer.norm, layer.mlp)  # type: ignore[arg-type]
    return Record(
        metrics={
            "validation_loss": list(curve.values())[-1],
            "curve_mean": sum(curve.values()) / len(curve),
            "state_bytes_per_parameter": state_bytes(steppers) / parameters,
            "mlp_bytes_per_token": saved_bytes(half, sizes["features"]) / 256,
            "layer_bytes_per_token": saved_bytes(layer, sizes["features"]) / 256,
            **averages,
        },
        series={"validation_loss": Series(tuple(curve), tuple(curve.values()), unit="step")},
        resources={"parameters": float(parameters)},
    )


ADAMW = "betas=(0.9, 0.95), weight_decay=0.1"
ARMS = {
    "float32": (f"adamw({ADAMW})", "full"),
    "bfloat16-states": (f"coat-adamw({ADAMW}, exp_avg_dtype='bfloat16', exp_avg_sq_dtype='bfloat16')", "full"),
    "fp8-states": (f"coat-adamw({ADAMW})", "full"),
    "fp8-states-unexpanded": (f"coat-adamw({ADAMW}, expand=False)", "full"),
    "coat": (f"coat-adamw({ADAMW})", "fp8"),
}


def study(scale: str) -> Study:
    """Return the study at a scale: "smoke", "desk" or "paper"."""
    setting = asdict(SETTINGS[scale])
    return Study(
        claim="AdamW with FP8 moments and dynamic range expansion, alone and with FP8 activations, follows the loss of "
        "AdamW in full precision at about a quarter of its state's memory and about half of the saved activations' "
        "memory of bfloat16 layers; expansion lowers the moments' quantization error.",
        arms={
            name: Call(train, {"optimizer": optimizer, "activations": activations, **setting})
            for name, (optimizer, activations) in ARMS.items()
        },
        expects=[
            equivalent("validation_loss", within=0.02, arms=["float32", "fp8-states"]),
            equivalent("curve_mean", within=0.02, arms=["float32", "fp8-states"]),
            equivalent("validation_loss", within=0.02, arms=["float32", "coat"]),
            equivalent("curve_mean", within=0.02, arms=["float32", "coat"]),
            above("square_error_gain", 1.5, arms=["float32"]),
            above("direction_error_gain", 1.5, arms=["float32"]),
            ratio("state_bytes_per_parameter", "fp8-states", "float32", below=0.27),
            ratio("mlp_bytes_per_token", "coat", "float32", below=0.56),
        ],
        sources=SOURCES,
        limits=LIMITS,
        seeds=2 if scale == "smoke" else 6,
        covers="the windows of text, the initial weights and the order of the mini-batches",
    )


SOURCES = {
    "optimizer": "official OLMo configuration: betas (0.9, 0.95), weight decay 0.1; groups of 128, E4M3 for both moments",
    "activations": "the paper's precision flow; groups of 16",
    "data": "scaled down from OLMo's corpus because a trial must take seconds",
    "windows": "ours: as many as a run reads, about half of them once",
    "context": "scaled down from 2048",
    "features": "scaled down from 2048 (OLMo-1B)",
    "hidden": "scaled down in proportion to features",
    "heads": "scaled down from 16",
    "layers": "scaled down from 16",
    "batch_size": "scaled down from 4 million tokens",
    "steps": "scaled down from hundreds of thousands",
    "evaluations": "ours",
    "lr": "desk: the best of 1e-3, 2e-3, 4e-3, 8e-3 and 1.6e-2 for AdamW in float32 by validation loss on one other seed, "
    "and shared, since the method is to be dropped in; other scales: ours",
}
LIMITS = (
    "A decoder of a tenth of a million parameters for a few hundred steps: that FP8 states without expansion do harm in "
    "long runs of large models cannot be shown here, and the study does not expect it. Nor can speed, which needs FP8 "
    "hardware; here FP8 products are computed on dequantized codes. Memory is counted in bytes of states and of tensors saved "
    "for backward, not measured end to end. Attention itself stays in full precision, as in the paper. All arms share one "
    "learning rate, tuned for AdamW in float32 only; the margin of the arm with FP8 activations was set after a first trial "
    "on another seed had been seen."
)
