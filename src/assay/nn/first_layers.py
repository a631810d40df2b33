"""TrAct layers: their weight's gradient is what moves their pre-activations, not their weights, along the gradient.

Petersen, Borgelt and Ermon, "TrAct: Making First-layer Pre-Activations Trainable" (arXiv:2410.23970). A first layer
z = x W^T has the gradient g^T x, so that bright images, or those of high contrast, train it harder. TrAct asks for the
dW that, in the sense of ridge regression, changes z as a plain gradient step on z would. In closed form, with
g = dL/dz of a mean loss,

    dW = g^T x (x^T x / b + lam I)^-1

takes the place of W's gradient; outputs, input gradients, bias gradients and the optimizer stay as they are.

Shapes: x (..., n) with b rows, W (m, n), g (..., m). For a convolution the rows are the patches at all positions of all
images, n = (C / groups) kh kw, with one inverse per group. For an embedding they are one-hot, which leaves a factor
1 / (count / b + lam) for each token's row, where b counts tokens that are no padding.

lam is in units of the input's variance: standardise the inputs. Each backward pass takes its own batch's moment, so
gradients accumulated over micro-batches are sums of several inverses, and processes do not share theirs.
In eval mode a layer is the plain one, with true gradients, so that probes of curvature and gradients per sample are
right; differentiating twice, or `torch.func.vmap`, is an error in training mode. Weight decay that an optimizer adds to
the gradient comes after the inverse, as in official code.

Departures: official code drops dilation, groups and padding modes, which are kept here. lam is never below the rounding
error of the moment, so that inputs that were not standardised give a finite step. The moment is computed in at least
float32 and in the forward pass, so that n x n (or b x b) numbers are kept for backward instead of patches.
Cost per step: one Cholesky factor, of size n (for `TrActLinear` the smaller of n and b), and b n^2 to make its matrix.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn._moment_inverse import (
    Preconditioned,
    RowsScaled,
    apply_inverse,
    check_lam,
    factor,
    factor_of_rows,
)

__all__ = ["TrActConv2d", "TrActEmbedding", "TrActLinear", "tract_gradient"]

PATCH_ENTRIES = 2**24  # unfolded at a time


def tract_gradient(x: Tensor, g: Tensor, lam: float = 0.1) -> Tensor:
    """Return the weight update g^T x (x^T x / b + lam I)^-1 of a linear layer.

    Args:
        x: Inputs (b, n).
        g: Gradients by the outputs (b, m).
        lam: Ridge, above 0.

    Returns:
        (m, n), in x's type.

    Raises:
        InvalidInput: If lam is not above 0, or the shapes do not fit.

    Example:
        >>> tract_gradient(torch.eye(2), torch.tensor([[1.0], [3.0]]), lam=0.5)  # x^T x / b = I / 2
        tensor([[1., 3.]])
    """
    check_lam(lam)
    if x.ndim != 2 or g.ndim != 2 or len(x) != len(g):
        raise InvalidInput(f"expected x (b, n) and g (b, m), got {tuple(x.shape)} and {tuple(g.shape)}")
    return apply_inverse(g.T @ x, *factor_of_rows(x, lam)).to(x.dtype)


def _acts(layer: nn.Module) -> bool:
    """Return whether a gradient for the weight may be asked for."""
    # a module's attributes are declared as tensors or modules
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return layer.training and weight.requires_grad and torch.is_grad_enabled()


class TrActLinear(nn.Linear):
    """A linear layer with TrAct's gradient for its weight; parameters and state dict are those of `nn.Linear`.

    Args:
        in_features: Input size n.
        out_features: Output size m.
        bias: Whether to add a bias.
        lam: Ridge, above 0, in units of the input's variance.
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Linear`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        InvalidInput: If lam is not above 0.

    Example:
        >>> layer = TrActLinear(2, 1, bias=False, lam=1.0)
        >>> layer(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).mean().backward()
        >>> layer.weight.grad  # the gradient (1, 0) times the inverse of diag(2, 0) + 1
        tensor([[0.3333, 0.0000]])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        lam: float = 0.1,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_lam(lam)
        with torch.random.fork_rng(enabled=generator is not None, devices=[]):
            super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        _draw(self, generator)
        self.lam = lam

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., m) for x (..., n)."""
        return F.linear(x, self._weight(x), self.bias)

    def _weight(self, x: Tensor) -> Tensor:
        if not _acts(self):
            return self.weight
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            parts = factor_of_rows(x.detach().reshape(-1, self.in_features), self.lam)
        weight: Tensor = Preconditioned.apply(self.weight, *parts)
        return weight

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{super().extra_repr()}, lam={self.lam}"


class TrActConv2d(nn.Conv2d):
    """A convolution with TrAct's gradient for its weight; all options of `nn.Conv2d` mean what they mean there.

    Args:
        in_channels: C.
        out_channels: m.
        kernel_size: kh and kw, or one number for both.
        stride: As of `nn.Conv2d`.
        padding: As of `nn.Conv2d`, also "same" and "valid".
        dilation: As of `nn.Conv2d`.
        groups: As of `nn.Conv2d`; each group has a moment of its own.
        bias: Whether to add a bias.
        padding_mode: As of `nn.Conv2d`.
        lam: Ridge, above 0, in units of the input's variance.
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Conv2d`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        InvalidInput: If lam is not above 0.

    Example:
        >>> layer = TrActConv2d(3, 8, 3, padding=1)
        >>> layer(torch.randn(4, 3, 16, 16)).square().mean().backward()
        >>> layer.weight.grad.shape
        torch.Size([8, 3, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        lam: float = 0.1,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_lam(lam)
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        with torch.random.fork_rng(enabled=generator is not None, devices=[]):
            super().__init__(*sizes, padding_mode, device=device, dtype=dtype)  # type: ignore[arg-type]
        _draw(self, generator)
        self.lam = lam

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, m, H', W') for images (B, C, H, W), or without B for one image."""
        return self._conv_forward(x, self._weight(x), self.bias)

    def _weight(self, x: Tensor) -> Tensor:
        if not _acts(self):
            return self.weight
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            parts = factor(self._moment(x.detach() if x.ndim == 4 else x.detach()[None]), self.lam)
        weight: Tensor = Preconditioned.apply(self.weight, *parts, None)
        return weight

    def _moment(self, x: Tensor) -> Tensor:
        """Return the mean outer product of patches (groups, n, n), a part of the images at a time."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x.to(torch.promote_types(x.dtype, torch.float32)), self._reversed_padding_repeated_twice, mode)
        n = self.in_channels // self.groups * math.prod(self.kernel_size)
        total, patches = x.new_zeros(self.groups, n, n), 0
        for part in x.split(max(1, PATCH_ENTRIES // (math.prod(self.kernel_size) * max(1, x[:1].numel())))):
            rows = self._patches(part).reshape(self.groups, n, -1)
            total, patches = total + rows @ rows.mT, patches + rows.shape[-1]
        return total / max(patches, 1)

    def _patches(self, x: Tensor) -> Tensor:
        """Return a view (C, kh, kw, B, H', W') of padded images: about twice as fast as `F.unfold` on a CPU."""
        for dim, kernel, stride, dilation in zip((2, 3), self.kernel_size, self.stride, self.dilation, strict=True):
            x = x.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        return x.permute(1, 4, 5, 0, 2, 3)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{super().extra_repr()}, lam={self.lam}"


class TrActEmbedding(nn.Embedding):
    """An embedding with TrAct's gradient: that of a `TrActLinear` without bias on one-hot rows.

    Rows of frequent tokens take smaller steps, by 1 / (share of the tokens + lam). With the default lam that matters
    for tokens that make up a tenth of the batch or more; choose lam about as large as a usual token's share.

    Args:
        num_embeddings: Rows V.
        embedding_dim: Columns m.
        padding_idx: A row that gets no gradient; its tokens are not counted.
        lam: Ridge, above 0.
        generator: Draws the initial weights; None is torch's global generator, as in `nn.Embedding`.
        device: Of the weight.
        dtype: Of the weight.

    Raises:
        InvalidInput: If lam is not above 0.

    Example:
        >>> layer = TrActEmbedding(3, 1, lam=0.5)
        >>> layer(torch.tensor([0, 0, 2, 0])).mean().backward()
        >>> layer.weight.grad.T  # shares 3/4, 0 and 1/4, each over itself plus 1/2
        tensor([[0.6000, 0.0000, 0.3333]])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        lam: float = 0.1,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_lam(lam)
        with torch.random.fork_rng(enabled=generator is not None, devices=[]):
            super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        _draw(self, generator)
        self.lam = lam

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows (..., m) of the tokens x (...), integers from 0 to V - 1."""
        return F.embedding(x, self._weight(x), self.padding_idx)

    def _weight(self, x: Tensor) -> Tensor:
        if not _acts(self):
            return self.weight
        tokens = x.reshape(-1)
        counted = torch.ones_like(tokens) if self.padding_idx is None else tokens.ne(self.padding_idx).to(tokens.dtype)
        counts = counted.new_zeros(self.num_embeddings).index_add(0, tokens, counted)
        shares = counts.to(torch.promote_types(self.weight.dtype, torch.float32)) / counts.sum().clamp(min=1)
        weight: Tensor = RowsScaled.apply(self.weight, 1 / (shares + self.lam))
        return weight

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{super().extra_repr()}, lam={self.lam}"


def _draw(layer: nn.Linear | nn.Conv2d | nn.Embedding, generator: torch.Generator | None) -> None:
    """Draw initial weights from a generator as the torch class does from the global one."""
    if generator is None:
        return
    if isinstance(layer, nn.Embedding):
        nn.init.normal_(layer.weight, generator=generator)
        layer._fill_padding_idx_with_zero()
        return
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
