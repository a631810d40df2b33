"""Physical local learning: forward-forward training of digital layers between systems that have no gradient.

Momeni, Rahmani, Mallejac, del Hougne, Fleury, arXiv:2304.11042 (in Science 382, 1297 (2023) called PhyLL); equations
from its official code. For blocks k = 1..K, each a fixed part p_k and a trainable part W_k, with fixed random unit
vectors xi_k and h_0 = the input with a label written into it:

    r_k = p_k(h_{k-1});  h_k = W_k r_k + b_k;  g_k = cos(|h_k|, xi_k)
    loss_k = mean log(1 + exp(-theta (g_k(x, y) - g_k(x, y')))),  y' a wrong label, drawn for each batch

`inner` optimizer steps on loss_k are taken with r_k measured once, then h_k is computed with the new weights and handed
to block k + 1 without gradient. The predicted class is the label with the largest sum_k g_k.

Shapes: x (B, ...); right and wrong label stacked to (2 B, ...); h_k (2 B, d_k), xi_k (d_k,); scores (B, C).
Departures: the label's amplitude is the largest |x| of the sample itself, where the code takes that of the batch, so
that a prediction depends on no other sample. One optimizer over all blocks stands for one per block, which is the same
for element-wise ones. With inner = 1 an update is the ordinary one: all blocks at the same weights.
Cost: 2 B samples through each system per update, whatever `inner` is, C B per prediction; no gradient leaves a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn.physical_transform import PhysicalTransform
from assay.rules.forward_forward import embed_label
from assay.rules.rule import Rule
from assay.rules.splitting import block_widths, trainable
from assay.rules.splitting import blocks as find_blocks

__all__ = ["PhysicalForward", "cosine_goodness", "label_contrast"]

EPSILON = 1e-6


def cosine_goodness(h: Tensor, xi: Tensor) -> Tensor:
    """Return the cosine of each row of h (B, d) with the unit vector xi (d,); 0 for a row of zeros.

    Example:
        >>> cosine_goodness(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]))
        tensor([0.6000, 0.0000])
    """
    return (h @ xi) / h.norm(dim=1).clamp_min(EPSILON)


def label_contrast(right: Tensor, wrong: Tensor, theta: float) -> Tensor:
    """Return mean log(1 + exp(-theta (right - wrong))) of the goodness of paired labels (B,).

    Example:
        >>> round(label_contrast(torch.zeros(3), torch.zeros(3), theta=4.0).item(), 4)
        0.6931
    """
    return F.softplus(-theta * (right - wrong)).mean()


class PhysicalForward(Rule):
    """Local contrast between right and wrong labels, through layers that have no gradient.

    Args:
        model: Blocks of any layers. In each block, physical layers (`assay.nn.PhysicalTransform`) come before
            what is trained. A linear head at the end is not used. Without a physical layer this trains ordinary
            networks, as the paper's digital twin.
        num_classes: Number of classes C, at least 2.
        blocks: Names of the blocks where the model is no `nn.Sequential`.
        theta: Steepness of the contrast; 4 or 5 in the paper.
        inner: Optimizer steps per block and mini-batch; 10 to 25 in the paper, which trains on full batches.
        magnitude: Whether goodness reads |h|, as with detectors that see no phase, or h (the paper's digital network).
        embed: "overwrite" writes the label into the first C entries of the flattened input, "prepend" puts C entries in
            front of it.
        amplitude: What stands at the label's entry, the others being 0; None is the largest |x| of the sample.
        input_shape: Shape of one input without label, where neither the model nor its first layer tells.
        generator: Draws the directions xi and the wrong labels.

    Raises:
        InvalidInput: If the model has no blocks, a physical layer comes after trained weights or has no weights after
            it, the label does not fit into the input, or a number is out of its range.

    Example:
        >>> from assay.models.physical_network import PhysicalNetwork
        >>> rule = PhysicalForward(PhysicalNetwork((8,), 3, width=16), num_classes=3)
        >>> rule.predict(torch.ones(5, 8)).shape
        torch.Size([5, 3])
    """

    local = True
    label_sweep = True
    needs = "blocks"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        blocks: Sequence[str] | None = None,
        theta: float = 4.0,
        inner: int = 10,
        magnitude: bool = True,
        embed: str = "overwrite",
        amplitude: float | None = None,
        input_shape: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        _check_options(num_classes, theta, inner, embed)
        found = find_blocks(model, blocks)
        self.names = list(found.names)
        parts = [_split(name, block) for name, block in zip(found.names, found.modules, strict=True)]
        self.fixed, self.digital = [p for p, _ in parts], [d for _, d in parts]
        self.num_classes, self.theta, self.inner, self.magnitude = num_classes, theta, inner, magnitude
        self.embed, self.amplitude = embed, amplitude
        shape = input_shape if input_shape is not None else getattr(model, "input_shape", None)
        if embed == "prepend" and shape is not None:
            shape = (num_classes + torch.Size(shape).numel(),)
        entries, widths = block_widths(found, model, shape)
        if entries <= num_classes:
            raise InvalidInput(
                f"the label takes {num_classes} entries of the input, which has {entries}; nothing would be left of it"
            )
        like = next(model.parameters())
        for k, d in enumerate(widths):
            xi = torch.randn(d, generator=self.generator).to(like.device, like.dtype)
            self.register_buffer(f"direction{k}", F.normalize(xi, dim=0))

    def embedded(self, x: Tensor, y: Tensor) -> Tensor:
        """Return a copy of the inputs (B, ...) with the labels y (B,) written into them."""
        return self._write(x, F.one_hot(y, self.num_classes).to(x.dtype))

    def _write(self, x: Tensor, labels: Tensor) -> Tensor:
        """Write labels (B, C), scaled to the amplitude, into the inputs."""
        if not x.is_floating_point():
            raise InvalidInput(f"a label is written into the input as a number; inputs of {x.dtype} can't hold it")
        flat = x.flatten(1)
        strength = flat.abs().amax(1, keepdim=True) if self.amplitude is None else self.amplitude
        if self.embed == "prepend":
            return torch.cat([strength * labels, flat], dim=1)
        return embed_label(flat, strength * labels).view_as(x)

    def _pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the inputs with their right and, below them, with wrong labels, uniform over the others."""
        if y.ndim != 1 or y.is_floating_point() or not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise InvalidInput(
                f"expected class labels (B,) from 0 to {self.num_classes - 1}, got {tuple(y.shape)} of {y.dtype}"
            )
        device = self.generator.device
        offset = torch.randint(1, self.num_classes, y.shape, generator=self.generator, device=device)
        wrong = (y + offset.to(y.device)) % self.num_classes
        return self.embedded(x.detach().repeat(2, *[1] * (x.ndim - 1)), torch.cat([y, wrong]))

    def _goodness(self, k: int, h: Tensor) -> Tensor:
        h = h.flatten(1)
        return cosine_goodness(h.abs() if self.magnitude else h, self.get_buffer(f"direction{k}"))

    def _block_loss(self, k: int, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return h_k, without gradient, and loss_k of the stacked pairs."""
        h = self.digital[k](r)
        right, wrong = self._goodness(k, h).chunk(2)
        return h.detach(), label_contrast(right, wrong, self.theta)

    def _measure(self, k: int, h: Tensor) -> Tensor:
        with torch.no_grad():
            r: Tensor = self.fixed[k](h)
        return r

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add each block's own gradient at the current weights to `.grad`; see `Rule.backward`."""
        h, losses = self._pairs(x, y), []
        for k in range(len(self.names)):
            h, loss = self._block_loss(k, self._measure(k, h))
            _add_gradient(loss)
            losses.append(loss.detach())
        return self._logs(losses)

    def step(
        self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, clip: float | None = None
    ) -> dict[str, Tensor]:
        """Train block after block on this mini-batch, `inner` optimizer steps each; see `Rule.step`."""
        if self.inner == 1:
            return super().step(x, y, optimizer, clip)
        h, losses, groups = self._pairs(x, y), [], self.groups()
        for k in range(len(self.names)):
            r = self._measure(k, h)
            for _ in range(self.inner):
                optimizer.zero_grad(set_to_none=True)
                loss = self._block_loss(k, r)[1]
                _add_gradient(loss)
                if clip is not None:
                    nn.utils.clip_grad_norm_(groups[k], clip)
                optimizer.step()
            with torch.no_grad():
                h = self.digital[k](r)
            losses.append(loss.detach())
        optimizer.zero_grad(set_to_none=True)
        self.after_step()
        return self._logs(losses)

    def _logs(self, losses: list[Tensor]) -> dict[str, Tensor]:
        named = {f"loss/{name}": loss for name, loss in zip(self.names, losses, strict=True)}
        return named | {"loss": torch.stack(losses).sum()}

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group per block."""
        return [trainable(part) for part in self.digital]

    def _blocks(self, h: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for name, fixed, digital in zip(self.names, self.fixed, self.digital, strict=True):
            outputs[name] = h = digital(fixed(h))
        return outputs

    def _scores(self, x: Tensor) -> Tensor:
        """Return the goodness of every candidate label, summed over blocks."""
        labels = torch.arange(self.num_classes, device=x.device).repeat_interleave(len(x))
        outputs = self._blocks(self.embedded(x.repeat(self.num_classes, *[1] * (x.ndim - 1)), labels)).values()
        goodness = [self._goodness(k, h) for k, h in enumerate(outputs)]
        return torch.stack(goodness).sum(0).view(self.num_classes, len(x)).T

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the block outputs under the neutral label, 1/C of the amplitude for every class."""
        return self._blocks(self._write(x, x.new_full((len(x), self.num_classes), 1 / self.num_classes)))


def _add_gradient(loss: Tensor) -> None:
    """Backpropagate a block's loss. A frozen block's has no gradient; under `torch.no_grad` torch's error is wanted."""
    if loss.requires_grad or not torch.is_grad_enabled():
        loss.backward()


def _leaves(module: nn.Module) -> list[nn.Module]:
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return [module]
    return [leaf for child in module for leaf in _leaves(child)]


def _split(name: str, block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the leading layers of a block, which have nothing to train, and the others."""
    leaves = _leaves(block)
    first = next((i for i, leaf in enumerate(leaves) if trainable(leaf)), len(leaves))
    fixed, digital = nn.Sequential(*leaves[:first]), nn.Sequential(*leaves[first:])
    if any(isinstance(m, PhysicalTransform) for m in digital.modules()):
        raise InvalidInput(
            f"block {name!r} has a physical layer after trained weights, which no gradient can reach; put each "
            "physical layer and the trained layers after it into one nn.Sequential"
        )
    after = next((i for i, leaf in enumerate(reversed(leaves)) if isinstance(leaf, PhysicalTransform)), None)
    if after is not None and not list(nn.ModuleList(leaves[len(leaves) - after :]).parameters()):
        raise InvalidInput(
            f"block {name!r} has no weights after its physical layer, so there is nothing in it to train; put each "
            "physical layer and the trained layers after it into one nn.Sequential"
        )
    if any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in digital.modules()):
        raise InvalidInput(f"block {name!r} looks inputs up in a table, so no label can be written into them")
    return fixed, digital


def _check_options(num_classes: int, theta: float, inner: int, embed: str) -> None:
    if num_classes < 2:
        raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
    if not theta > 0 or inner < 1:
        raise InvalidInput(f"need theta > 0 and inner of at least 1; got {theta} and {inner}")
    if embed not in ("overwrite", "prepend"):
        raise InvalidInput(f"embed must be 'overwrite' or 'prepend', not {embed!r}")
