"""Which modules `patch` may change, found out by what they compute and not by their names.

A candidate has the right structure (a norm's weight, the three projections of a gated MLP, a rotary function among a
forward's globals, a causal head). Its class's own forward then runs on a few small random numbers, and the candidate is
accepted only if one of the kernels gives the same. So a class that nobody has heard of is patched rightly, and a class
that looks familiar but computes something else is left alone, with the reason.

Each matcher returns the changes (module, recipe), a string saying why a candidate was left alone, or `None` for a
module that is no candidate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.kernels._recipes import (
    CausalLoss,
    FusedLayerNorm,
    FusedRMSNorm,
    FusedRotation,
    GatedMLP,
    LossInHead,
    TanhGELU,
)
from assay.kernels._swap import Recipe, original_class, recipes_of, stand_in, with_recipes
from assay.kernels.rms_normalisation.reference import CASTINGS, rms_norm_reference
from assay.kernels.rotary_embedding.reference import rope_reference

__all__ = ["MATCHERS"]

Found = list[tuple[nn.Module, Recipe]] | str | None

_EPS = ("eps", "variance_epsilon", "epsilon")
_DIFFERS = "it computes something else than the kernel"
_ROTARY = "apply_rotary_pos_emb"


def _random(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") * scale).to(dtype)


def _obstacle(module: nn.Module, arguments: int | None = 1) -> str | None:
    """Return why a module's class cannot be changed, if so."""
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance (by offloading hooks or another patcher)"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrized"
    if arguments is not None and len(inspect.signature(type(module).forward).parameters) != arguments + 1:
        return "its forward takes other arguments"
    return None


def _equal(compute: Callable[[], Tensor], expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether something computes what is expected; what fails does not."""
    try:
        with torch.no_grad():
            found = compute()
    except Exception:
        return False
    return found.shape == expected.shape and torch.allclose(found.double(), expected.double(), tolerance, tolerance)


def rms_norm(module: nn.Module) -> Found:
    """Match a module whose only tensor is a one-dimensional weight, with an epsilon."""
    if isinstance(module, nn.LayerNorm) or set(module._parameters) != {"weight"} or module._modules or module._buffers:
        return None
    name, weight = next((name for name in _EPS if hasattr(module, name)), None), module._parameters["weight"]
    if name is None or weight is None or weight.dim() != 1:
        return None
    obstacle, eps = _obstacle(module), getattr(module, name)
    if obstacle or not isinstance(eps, float):
        return obstacle or f"its epsilon is {eps!r}"
    recipes = [FusedRMSNorm(eps, offset, casting) for offset in (0.0, 1.0) for casting in CASTINGS]
    fitting = [recipe for recipe in recipes if _off(module, weight, recipe, torch.float32) < 1e-5]
    # Full precision tells the offset, rounding the order of casts: they differ in single bits of some elements.
    off = {recipe: _off(module, weight, recipe, torch.bfloat16) for recipe in fitting}
    best = min(off, key=off.__getitem__, default=None)
    return _DIFFERS if best is None or off[best] > 1e-3 else [(module, best)]


def _off(module: nn.Module, weight: Tensor, recipe: FusedRMSNorm, dtype: torch.dtype) -> float:
    """Return the relative error of a recipe for inputs and weights of a type, inf if something fails."""
    size = weight.shape[0]
    # As small as the epsilon, so that it counts.
    inputs = _random(64, size, dtype=dtype, scale=max(recipe.eps, 1e-12) ** 0.5)
    parameter = nn.Parameter(1 + _random(size, scale=0.5).to(dtype))
    try:
        with torch.no_grad():
            found = stand_in(module, tensors={"weight": parameter})(inputs).double()
            expected = rms_norm_reference(
                inputs, size, parameter, recipe.eps, offset=recipe.offset, casting=recipe.casting
            ).double()
    except Exception:
        return float("inf")
    return float((found - expected).norm() / expected.norm()) if found.shape == expected.shape else float("inf")


def layer_norm(module: nn.Module) -> Found:
    """Match torch's own layer norm, whatever subclasses keep of it."""
    if not isinstance(module, nn.LayerNorm):
        return None
    if original_class(module).forward is not nn.LayerNorm.forward:
        return "its class has a forward of its own"
    return _obstacle(module) or [(module, FusedLayerNorm())]


def gated_mlp(kernel: str) -> Callable[[nn.Module], Found]:
    """Return the matcher of gated MLPs with the activation of "swiglu" or "geglu"."""
    activations = {"swiglu": F.silu, "geglu": lambda gate: F.gelu(gate, approximate="tanh")}

    def match(module: nn.Module) -> Found:
        if not {"gate_proj", "up_proj", "down_proj"} <= set(module._modules):
            return None
        obstacle = _obstacle(module)
        if obstacle:
            return obstacle if kernel == "swiglu" else None  # said once
        shapes = {"gate_proj": (3, 5), "up_proj": (3, 5), "down_proj": (5, 3)}
        projections = {name: _linear(*shape, dtype=torch.float64) for name, shape in shapes.items()}
        probe, inputs = stand_in(module, children=projections), _random(7, 3)
        gate, up, down = projections.values()

        def expected(activation: Callable[[Tensor], Tensor]) -> Tensor:
            return down(activation(gate(inputs)) * up(inputs)).detach()

        if _equal(lambda: probe(inputs), expected(activations[kernel])):
            return [(module, GatedMLP(kernel))]
        if any(_equal(lambda: probe(inputs), expected(other)) for other in activations.values()):
            return None  # the other kernel's
        return _DIFFERS if kernel == "swiglu" else None

    return match


def _linear(features: int, outputs: int, *, bias: bool = False, dtype: torch.dtype, scale: float = 1.0) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, features, outputs, bias=bias, device="cpu", dtype=dtype)
    layer.weight.data = _random(outputs, features, dtype=dtype, scale=scale)
    if layer.bias is not None:
        layer.bias.data = _random(outputs, dtype=dtype)
    return layer


def gelu(module: nn.Module) -> Found:
    """Match activations that spell out GELU by tanh, which keep each step for backward."""
    if original_class(module).__name__ not in ("NewGELUActivation", "FastGELUActivation"):
        return None
    inputs = _random(64)
    fits = _equal(lambda: module(inputs), F.gelu(inputs, approximate="tanh"))
    return _obstacle(module) or ([(module, TanhGELU())] if fits else _DIFFERS)


def rope(module: nn.Module) -> Found:
    """Match modules whose forward calls a rotary function by its usual name."""
    forward: Any = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    if code is None or _ROTARY not in code.co_names or _ROTARY not in forward.__globals__:
        return None
    if forward is not type(module).forward:
        return "its forward is wrapped by a decorator"
    function = forward.__globals__[_ROTARY]
    fits = _rotates(function, 8) and (_rotates(function, 4) or not _works(function, 4))
    return _obstacle(module, None) or ([(module, FusedRotation(_ROTARY))] if fits else _DIFFERS)


def _rotation_inputs(angles: int) -> tuple[Tensor, ...]:
    """Queries and keys with 8 features, angles for some of them."""
    turns = _random(2, 5, angles // 2).repeat(1, 1, 2)
    return _random(2, 3, 5, 8), _random(2, 1, 5, 8), turns.cos(), turns.sin()


def _works(function: Callable[..., Any], angles: int) -> bool:
    try:
        function(*_rotation_inputs(angles))
    except Exception:
        return False
    return True


def _rotates(function: Callable[..., Any], angles: int) -> bool:
    """Whether a function turns queries and keys as `rotate` does, the angles for all or for some features."""
    queries, keys, cos, sin = _rotation_inputs(angles)
    turned = rope_reference(queries[..., :angles], keys[..., :angles], cos, sin)
    expected = (torch.cat((t, x[..., angles:]), -1) for t, x in zip(turned, (queries, keys), strict=True))
    return all(_equal(lambda i=i: function(queries, keys, cos, sin)[i], part) for i, part in enumerate(expected))  # type: ignore[misc]


def linear_cross_entropy(module: nn.Module) -> Found:
    """Match a causal language model: labels among its arguments, a linear head among its children."""
    if not hasattr(type(module), "get_output_embeddings") or not hasattr(type(module), "loss_function"):
        return None
    if "labels" not in inspect.signature(type(module).forward).parameters:
        return None
    model: Any = module
    head = model.get_output_embeddings()
    if head is None:
        return None
    name = next((name for name, child in module.named_children() if child is head), None)
    if model.base_model_prefix not in module._modules:
        return "its backbone is not where its class says"
    if name is None or original_class(head) is not nn.Linear:
        return f"its head, a {type(head).__name__}, is no linear layer right beneath it"
    obstacle = _obstacle(module, None) or _obstacle(head)
    if obstacle:
        return obstacle
    fitting = (recipe for recipe in _logit_forms(name, model.config) if _same_loss(model, recipe))
    recipe = next(fitting, None)
    if recipe is None:
        return "its loss is more than the shifted cross-entropy of its head's logits, or another"
    return [(module, recipe), (head, LossInHead())]


def _logit_forms(head: str, config: Any) -> Iterator[CausalLoss]:
    """Yield what a configuration may do to logits: bound them, multiply or divide them."""
    softcap = getattr(config, "final_logit_softcapping", None)
    multiplied, divided = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    scales = [1.0, *([float(multiplied)] if multiplied else []), *([1 / float(divided)] if divided else [])]
    for scale in scales:
        yield CausalLoss(head, softcap, scale)
        if softcap is not None:
            yield CausalLoss(head, None, scale)


class _Hidden(nn.Module):
    """A backbone that returns given hidden states."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *args: Any, **options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.states)


def _same_loss(model: Any, recipe: CausalLoss) -> bool:
    """Whether the class's own forward has the recipe's loss, for given hidden states with large logits."""
    head = getattr(model, recipe.head)
    small = _linear(3, head.out_features, bias=head.bias is not None, dtype=torch.float32, scale=8.0)
    asked = stand_in(small)
    asked.__class__ = with_recipes(nn.Linear, (LossInHead(),))
    backbone = {model.base_model_prefix: _Hidden(_random(2, 5, 3, dtype=torch.float32))}
    plain, patched = (stand_in(model, children={**backbone, recipe.head: layer}) for layer in (small, asked))
    patched.__class__ = with_recipes(original_class(model), (*recipes_of(model), recipe))
    plain.training = patched.training = True
    labels = torch.tensor([[0, 1, -100, 2, 0], [1, 1, 0, -100, 1]], device="cpu")

    def loss(of: nn.Module, **options: Any) -> Tensor:
        return of(input_ids=torch.zeros(2, 5, dtype=torch.int64, device="cpu"), labels=labels, **options).loss

    variants: tuple[dict[str, Any], ...] = (
        {},
        {"num_items_in_batch": 3},
        {"shift_labels": labels.clamp(min=0), "ignore_index": 1},
    )
    try:
        expected = [loss(plain, **options).detach() for options in variants]
    except Exception:
        return False
    pairs = zip(variants, expected, strict=True)
    return all(_equal(lambda options=options: loss(patched, **options), value) for options, value in pairs)  # type: ignore[misc]


MATCHERS: dict[str, Callable[[nn.Module], Found]] = {
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "rope": rope,
    "swiglu": gated_mlp("swiglu"),
    "geglu": gated_mlp("geglu"),
    "gelu": gelu,
    "linear_cross_entropy": linear_cross_entropy,
}
