"""NoProp: every block learns alone to recover a label's embedding from a noisy one, given the input.

Li, Teh and Pascanu, arXiv:2503.24322. u_y is the embedding of label y, z_t a noisy version of it (see
`assay.rules.denoising`; time runs from noise to label), uhat = softmax(logits) W a block's guess.

    dt  block t:  L_t = E + (T/2) eta (snr_t - snr_{t-1}) |uhat_t(z_{t-1}, x) - u_y|^2
    ct  t ~ U(0, 1):  L = E + (1/2) eta snr'(t) |uhat(z_t, x, t) - u_y|^2
    fm  t ~ U(0, 1), z_t = t u_y + (1 - t) z_0, v = logits(z_t, x, t) W:  L = |v - (u_y - z_0)|^2

with E = -log p(y | z_T) + KL(q(z_0 | y) || N(0, I)), p(y | z) a linear readout; fm adds -log p(y | z_t + (1 - t) v)
where W is learned. Prediction starts at z_0 ~ N(0, I): dt and ct take z_t = a_t uhat + b_t z_{t-1} + sqrt(c_t) e and
read z_T; fm takes Euler steps along v and chooses the nearest embedding.

Shapes: B samples, C classes, z and u (B, d), W (C, d). All noise is drawn on the CPU from the rule's generator.
Departures: Algorithm 1 prints "sample z_t" where the loss needs z_{t-1}; with several blocks per mini-batch their
losses are averaged, so that all T make the full sum; the cosine, which the paper does not give, is scaled into
(0.001, 0.99); gamma starts at (5, -5) and sigma of fm is 0 (not given); the readout starts as the nearest embedding
(not given), since a random one costs more steps than the blocks; the readout by distance, which the paper only
explores, is left out.
Cost: one block's forward and backward pass per drawn block, whose graph is freed before the next one: memory does not
grow with T. Prediction runs every block once (dt) or one block `inference_steps` times, its encoder once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.rules._noise_schedules import noise_schedule, snr_slope
from assay.rules._noprop_arguments import Denoiser, check_labels, check_options, denoiser, first_embedding, nearest
from assay.rules.denoising import chain_coefficients, prior_divergence, signal_to_noise
from assay.rules.rule import Rule
from assay.rules.splitting import trainable

__all__ = ["NoProp"]

ETA = {"dt": 0.1, "ct": 1.0}
SCHEDULES = {"dt": "cosine", "ct": "learned"}
STEPS = 1000


class NoProp(Rule):
    """Denoising of label embeddings, block by block.

    Args:
        model: A denoiser: `assay.models.NoPropNet`, or anything with `blocks`, `num_classes`, `embed_dim` and
            `time_conditioned` as it has them.
        num_classes: Number of classes C, at least 2.
        kind: "dt" for T blocks in discrete time, "ct" for one block in continuous time, "fm" for flow matching.
        embed: Embeddings of the labels: "onehot" (fixed), an int d (learned, orthogonal at first), or a tensor (C, d)
            from which learned ones start, such as `assay.rules.class_medoids`.
        order: Which blocks a mini-batch trains (dt): "random" draws them, "cycle" takes turns, "epoch" trains block
            after block in phases of their own (the paper's Algorithm 1).
        per_batch: Blocks per mini-batch, 1 to T.
        schedule: "cosine" (default of dt) or "learned" (default of ct).
        eta: Weight of the denoising term; 0.1 (dt) or 1 (ct) unless given.
        inference_steps: Steps of ct and fm from noise to label; 1000 unless given.
        samples: Chains that a prediction averages.
        generator: Draws noise, times, blocks, learned embeddings and schedules, and the seed of predictions.

    Raises:
        InvalidInput: If the model is no denoiser or not of the kind's sort, or an option has no such value.

    Example:
        >>> from assay.models.noprop_net import NoPropNet
        >>> rule = NoProp(NoPropNet((4,), 3, blocks=2, width=8), num_classes=3, per_batch=2)
        >>> sorted(rule.backward(torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])))
        ['loss', 'loss/block1', 'loss/block2', 'loss/prior', 'loss/readout']
        >>> rule.predict(torch.rand(6, 4)).shape
        torch.Size([6, 3])
    """

    embedding: Tensor
    needs = "denoiser"
    stochastic_predict = True

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        kind: str = "dt",
        embed: str | int | Tensor = "onehot",
        order: str = "random",
        per_batch: int = 1,
        schedule: str | None = None,
        eta: float | None = None,
        inference_steps: int | None = None,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, generator)
        net = denoiser(model, num_classes, kind)
        depth, like = len(net.blocks), next(model.parameters())
        check_options(kind, order, per_batch, depth, schedule, eta, inference_steps, samples)
        self.kind, self.order, self.per_batch, self.samples = kind, order, per_batch, samples
        self.eta = ETA.get(kind, 0.0) if eta is None else eta
        self.steps = depth if kind == "dt" else inference_steps or STEPS
        embedding = first_embedding(embed, num_classes, net.embed_dim, self.generator).to(like.device, like.dtype)
        fixed = isinstance(embed, str)
        if fixed:
            self.register_buffer("embedding", embedding)
        else:
            self.embedding = nn.Parameter(embedding)
        self.readout: nn.Linear | None = None
        if kind != "fm" or not fixed:
            self.readout = nearest(embedding)
        self.schedule: nn.Module | None = None
        if kind != "fm":
            self.schedule = noise_schedule(schedule or SCHEDULES[kind], self.generator).to(like.device, like.dtype)
        # Through embeddings or a schedule that learn from all of them, blocks hear of each other.
        self.coupled = not fixed or (self.schedule is not None and bool(trainable(self.schedule)))
        self.local = kind != "dt" or not self.coupled
        self.register_buffer("seed", torch.randint(2**62, (), generator=self.generator))
        if order == "cycle":
            self.register_buffer("updates", torch.tensor(0))
        if order == "epoch":
            self.phase_names = tuple(f"block{t}" for t in range(1, depth + 1))

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add the gradients of the drawn blocks, the readout and what else is learned; see `Rule.backward`.

        Raises:
            InvalidInput: If the labels are no classes from 0 to C - 1.
        """
        check_labels(y, len(self.embedding))
        parts = {"dt": self._discrete, "ct": self._continuous, "fm": self._flow}[self.kind](x.detach(), y.long())
        logs = {}
        for name, loss in parts:
            if loss.requires_grad or not torch.is_grad_enabled():
                loss.backward()
            logs[f"loss/{name}"] = loss.detach()
        return logs | {"loss": torch.stack(list(logs.values())).sum()}

    def _discrete(self, x: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield from self._ends(y)
        blocks, depth = self._net.blocks, len(self._net.blocks)
        drawn = self._drawn(depth)
        for t in drawn:
            u = self.embedding[y]
            before, after = self._retention((t - 1) / depth), self._retention(t / depth)
            guess = self._guess(blocks[t - 1](self._noised(u, before), blocks[t - 1].encode(x)))
            gain = signal_to_noise(after) - signal_to_noise(before)
            weight = depth / len(drawn) * self.eta / 2 * gain
            yield f"block{t}", weight * (guess - u).square().sum(1).mean()

    def _continuous(self, x: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield from self._ends(y)
        (block,), u = self._net.blocks, self.embedding[y]
        t = self._draw(torch.rand, len(y))
        assert self.schedule is not None
        retention, slope = snr_slope(self.schedule, t)
        guess = self._guess(block(self._noised(u, retention[:, None]), block.encode(x), t))
        yield "block1", (self.eta / 2 * slope * (guess - u).square().sum(1)).mean()

    def _flow(self, x: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor]]:
        (block,), u = self._net.blocks, self.embedding[y]
        t, z0 = self._draw(torch.rand, len(y)), self._draw(torch.randn, *u.shape)
        z = torch.lerp(z0, u, t[:, None])
        v = block(z, block.encode(x), t) @ self.embedding
        loss = (v - (u - z0)).square().sum(1).mean()
        if self.readout is not None:
            loss = loss + F.cross_entropy(self.readout(z + (1 - t[:, None]) * v), y)
        yield "block1", loss

    def _ends(self, y: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the terms of the two ends of the chain, which no block has part in."""
        assert self.readout is not None
        end = self._noised(self.embedding[y], self._retention(1.0))
        yield "readout", F.cross_entropy(self.readout(end), y)
        yield "prior", prior_divergence(self.embedding[y], self._retention(0.0)).mean()

    def _drawn(self, depth: int) -> list[int]:
        """Return the blocks, from 1, that this mini-batch trains."""
        if self.order == "epoch":
            return [self._phase + 1]
        if self.order == "cycle":
            start = int(self.get_buffer("updates")) * self.per_batch
            return sorted((start + i) % depth + 1 for i in range(self.per_batch))
        return sorted((torch.randperm(depth, generator=self.generator)[: self.per_batch] + 1).tolist())

    def after_step(self) -> None:
        """Go on to the next blocks, if they take turns."""
        if self.order == "cycle":
            self.get_buffer("updates").add_(1)

    def groups(self) -> list[list[nn.Parameter]]:
        """Return one group per block and one for the readout; a single one where the embedding or schedule learns."""
        blocks = list(self._net.blocks)
        if self.order == "epoch":
            blocks = [blocks[self._phase]]
        beside = [part for part in (self.readout, self.schedule) if part is not None]
        found = [trainable(block) for block in blocks] + [trainable(*beside)]
        if isinstance(self.embedding, nn.Parameter) and self.embedding.requires_grad:
            found[-1].append(self.embedding)
        found = [group for group in found if group]
        return [[p for group in found for p in group]] if self.coupled else found

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return scores (B, C) as `predict` does, from noise of the caller's; for the spread of predictions."""
        with self._inference():
            return self._read(self._trajectory(x, generator))

    def head(self) -> nn.Linear | None:
        """Return the readout of z_T; for flow matching the linear map whose argmax is the nearest embedding."""
        return nearest(self.embedding) if self.kind == "fm" else self.readout

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        trajectory = list(self._trajectory(x, self._prediction_noise()))
        if self.kind != "dt":
            trajectory = trajectory[-1:]
        return {f"block{t}": self._mean(z) for t, z in enumerate(trajectory, start=1)}

    def _scores(self, x: Tensor) -> Tensor:
        return self._read(self._trajectory(x, self._prediction_noise()))

    def _read(self, trajectory: Iterator[Tensor]) -> Tensor:
        end, head = deque(trajectory, maxlen=1).pop(), self.head()
        assert head is not None
        scores: Tensor = head(self._mean(end))
        return scores

    def _mean(self, z: Tensor) -> Tensor:
        """Average over chains; scores are linear in z, so that the head of the mean is the mean score."""
        return z.unflatten(0, (self.samples, -1)).mean(0)

    def _trajectory(self, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield z (samples * B, d) after each step from noise to label."""
        w, steps, blocks = self.embedding, self.steps, self._net.blocks
        shape = (self.samples * len(x), w.shape[1])
        # In half precision steps of a thousandth would be lost to rounding.
        z = self._draw(torch.randn, *shape, generator=generator).to(torch.promote_types(w.dtype, torch.float32))
        times = torch.arange(steps + 1, dtype=w.dtype, device=w.device) / steps
        if self.schedule is not None:
            retentions = self.schedule(times)
            a, b, c = chain_coefficients(retentions[:-1], retentions[1:])
        code = None
        for k in range(steps):
            block = blocks[k if self.kind == "dt" else 0]
            if code is None or self.kind == "dt":
                code = block.encode(x)
                code = code.repeat(self.samples, *[1] * (code.ndim - 1))
            logits = block(z.to(w.dtype), code, *([] if self.kind == "dt" else [times[k].expand(len(z))]))
            if self.kind == "fm":
                z = z + logits @ w / steps
            else:
                noise = self._draw(torch.randn, *shape, generator=generator)
                z = a[k] * self._guess(logits) + b[k] * z + c[k].sqrt() * noise
            yield z.to(w.dtype)

    @property
    def _net(self) -> Denoiser:
        return cast(Denoiser, self.model)

    def _guess(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) @ self.embedding

    def _retention(self, time: float) -> Tensor:
        assert self.schedule is not None
        retention: Tensor = self.schedule(self.embedding.new_tensor(time))
        return retention

    def _noised(self, u: Tensor, retention: Tensor) -> Tensor:
        return retention.sqrt() * u + (1 - retention).sqrt() * self._draw(torch.randn, *u.shape)

    def _draw(self, how: Callable[..., Tensor], *shape: int, generator: torch.Generator | None = None) -> Tensor:
        w = self.embedding
        return how(*shape, generator=generator or self.generator, dtype=w.dtype).to(w.device)

    def _prediction_noise(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(self.get_buffer("seed")))
