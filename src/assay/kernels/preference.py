"""Preference losses of language models whose logits are never stored: DPO, CPO, SimPO, ORPO and KTO.

They share `linear_log_probability`, which gives the log-probability of each sequence, chunk by chunk of tokens; what is
left of a loss is arithmetic on one number per sequence, that autograd handles.

Sources: DPO, Rafailov et al. (arXiv:2305.18290), eq. (7), label smoothing after Mitchell's "conservative DPO"; CPO, Xu
et al. (arXiv:2401.08417), eq. (6); SimPO, Meng et al. (arXiv:2405.14734), eq. (6); ORPO, Hong et al.
(arXiv:2403.07691), eqs. (4) to (7); KTO, Ethayarajh et al. (arXiv:2402.01306), eq. (8).

Shapes: N sequences of T tokens, H hidden features, V words.

Departure from Liger Kernel's chunked losses: they put whole pairs of sequences through `torch.func`, so a buffer of all
logits of a pair exists, three times. Chunks of tokens are as small as one wants whatever the sequences' length; the
price is one more product with the head, since a token's gradient needs its whole sequence's (4 instead of 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels.fused_linear_cross_entropy.functional import linear_cross_entropy

__all__ = ["LogProbability", "cpo_loss", "dpo_loss", "kto_loss", "linear_log_probability", "orpo_loss", "simpo_loss"]


@dataclass(frozen=True)
class LogProbability:
    """Log-probabilities of sequences; index or slice it like the sequences.

    Args:
        total: (N,), the sum over a sequence's tokens.
        tokens: (N,), how many tokens that sums.
    """

    total: Tensor
    tokens: Tensor

    @property
    def average(self) -> Tensor:
        """(N,), per token; nan for a sequence without any."""
        return self.total / self.tokens

    @property
    def negative_log_likelihood(self) -> Tensor:
        """Scalar: minus the mean over all tokens of all sequences, the loss of supervised fine-tuning."""
        return -self.total.sum() / self.tokens.sum()

    def __getitem__(self, index: slice | Tensor) -> LogProbability:
        return LogProbability(self.total[index], self.tokens[index])


def linear_log_probability(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> LogProbability:
    """Return the log-probability that a linear head gives to each sequence, without holding its logits.

    Args:
        input: (N, T, H) hidden states.
        linear_weight: (V, H).
        target: (N, T) the next token at each position (labels that are shifted already), or `ignore_index`, for
            instance in the prompt.
        linear_bias: (V,).
        ignore_index: Positions with this label count for nothing.
        softcap: Bound of the logits, `None` for none.
        chunk_size: Tokens whose logits exist at once; chosen from the shapes by default.

    Raises:
        InvalidInput: If shapes, dtypes, devices, options or labels do not fit.

    Example:
        >>> hidden, head = torch.randn(4, 6, 8), torch.nn.Linear(8, 100, bias=False)
        >>> policy = linear_log_probability(hidden, head.weight, torch.randint(100, (4, 6)))
        >>> simpo_loss(policy[:2], policy[2:], beta=2.0, gamma=0.5).shape
        torch.Size([])
    """
    if target.dim() != 2:
        raise InvalidInput(f"linear_log_probability: target must have shape (N, T), not {tuple(target.shape)}")
    losses = linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        reduction="none",
        ignore_index=ignore_index,
        softcap=softcap,
        chunk_size=chunk_size,
    )
    return LogProbability(-losses.sum(1), (target != ignore_index).sum(1))


def dpo_loss(
    chosen: LogProbability,
    rejected: LogProbability,
    reference_chosen: LogProbability,
    reference_rejected: LogProbability,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Direct preference optimization, $-\log\sigma(\beta[\log\pi/\pi_{ref}(y_w) - \log\pi/\pi_{ref}(y_l)])$.

    Args:
        chosen: Of the N preferred sequences, under the policy.
        rejected: Of the N others, in the same order.
        reference_chosen: Of the preferred ones under the reference model.
        reference_rejected: Of the others under the reference model.
        beta: Strength of the pull to the reference, above 0.
        label_smoothing: Probability that a preference is flipped, in [0, 0.5).

    Returns:
        The mean over pairs, a scalar.

    Raises:
        InvalidInput: If the numbers of sequences differ or an option is out of range.
    """
    _check_lengths("dpo_loss", chosen, rejected, reference_chosen, reference_rejected)
    _check_above_zero("dpo_loss", beta=beta)
    if not 0.0 <= label_smoothing < 0.5:
        raise InvalidInput(f"dpo_loss: label_smoothing must be in [0, 0.5), not {label_smoothing}")
    margin = chosen.total - rejected.total - (reference_chosen.total - reference_rejected.total).detach()
    right, flipped = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    return -((1 - label_smoothing) * right + label_smoothing * flipped).mean()


def cpo_loss(chosen: LogProbability, rejected: LogProbability, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    r"""Contrastive preference optimization: DPO with a uniform reference, and `alpha` times the likelihood loss.

    Args:
        chosen: Of the N preferred sequences.
        rejected: Of the N others, in the same order.
        beta: Factor of the difference of log-probabilities, above 0.
        alpha: Weight of the preferred sequences' negative log-likelihood per token, at least 0.

    Raises:
        InvalidInput: If the numbers of sequences differ or an option is out of range.
    """
    _check_lengths("cpo_loss", chosen, rejected)
    _check_above_zero("cpo_loss", beta=beta)
    _check_at_least_zero("cpo_loss", alpha=alpha)
    preference = -F.logsigmoid(beta * (chosen.total - rejected.total)).mean()
    return preference + alpha * chosen.negative_log_likelihood if alpha else preference


def simpo_loss(chosen: LogProbability, rejected: LogProbability, *, beta: float = 2.0, gamma: float = 0.5) -> Tensor:
    r"""SimPO: log-probabilities per token, no reference, a margin: $-\log\sigma(\beta\bar w - \beta\bar l - \gamma)$.

    Args:
        chosen: Of the N preferred sequences.
        rejected: Of the N others, in the same order.
        beta: Factor of the average log-probabilities, above 0.
        gamma: Margin, at least 0 (not divided by beta).

    Raises:
        InvalidInput: If the numbers of sequences differ or an option is out of range.
    """
    _check_lengths("simpo_loss", chosen, rejected)
    _check_above_zero("simpo_loss", beta=beta)
    _check_at_least_zero("simpo_loss", gamma=gamma)
    return -F.logsigmoid(beta * (chosen.average - rejected.average) - gamma).mean()


def orpo_loss(chosen: LogProbability, rejected: LogProbability, *, weight: float = 0.1) -> Tensor:
    r"""Odds-ratio preference optimization: the likelihood loss and `weight` times $-\log\sigma$ of the log odds ratio.

    Odds are $P/(1-P)$ with $\log P$ the average log-probability of a sequence's tokens.

    Args:
        chosen: Of the N preferred sequences.
        rejected: Of the N others, in the same order.
        weight: The paper's lambda, at least 0.

    Raises:
        InvalidInput: If the numbers of sequences differ or an option is out of range.
    """
    _check_lengths("orpo_loss", chosen, rejected)
    _check_at_least_zero("orpo_loss", weight=weight)
    log_odds_ratio = _log_odds(chosen.average) - _log_odds(rejected.average)
    return chosen.negative_log_likelihood - weight * F.logsigmoid(log_odds_ratio).mean()


def _log_odds(log_probability: Tensor) -> Tensor:
    """Return log(P / (1 - P)), exact for P near 0 and near 1."""
    near_one = log_probability > -math.log(2.0)
    # Each formula sees only values for which its gradient is finite.
    large = torch.where(near_one, log_probability, -1.0)
    small = torch.where(near_one, -1.0, log_probability)
    return log_probability - torch.where(near_one, torch.log(-torch.expm1(large)), torch.log1p(-torch.exp(small)))


def kto_loss(
    policy: LogProbability,
    reference: LogProbability,
    desirable: Tensor,
    divergence: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    r"""Kahneman-Tversky optimization, for sequences that are labelled one by one instead of in pairs.

    With the reward $r=\log\pi/\pi_{ref}$ and the reference point $z_0$ the loss is
    $\lambda_D(1-\sigma(\beta(r-z_0)))$ for desirable and $\lambda_U(1-\sigma(\beta(z_0-r)))$ for other sequences.

    Args:
        policy: Of N sequences, under the policy.
        reference: Of the same under the reference model.
        desirable: (N,) bool.
        divergence: z_0, the estimate of KL(policy, reference), such as the mean reward of mismatched pairs of prompts
            and answers; negative values count as 0; gets no gradient.
        beta: Factor of the rewards, above 0.
        desirable_weight: lambda_D, at least 0.
        undesirable_weight: lambda_U, at least 0.

    Returns:
        The mean over sequences, a scalar.

    Raises:
        InvalidInput: If the numbers of sequences differ or an option is out of range.
    """
    _check_lengths("kto_loss", policy, reference)
    _check_above_zero("kto_loss", beta=beta)
    _check_at_least_zero("kto_loss", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    if desirable.dtype != torch.bool or desirable.shape != policy.total.shape:
        expected = f"bool of shape {tuple(policy.total.shape)}"
        raise InvalidInput(f"kto_loss: desirable must be {expected}, not {desirable.dtype} of {tuple(desirable.shape)}")
    reward = policy.total - reference.total.detach()
    reference_point = torch.as_tensor(divergence, dtype=reward.dtype, device=reward.device).detach().clamp(min=0)
    above = beta * (reward - reference_point)
    losses = torch.where(desirable, desirable_weight * torch.sigmoid(-above), undesirable_weight * torch.sigmoid(above))
    return losses.mean()


def _check_lengths(name: str, *sequences: LogProbability) -> None:
    sizes = [tuple(given.total.shape) for given in sequences]
    if len(set(sizes)) != 1 or sizes[0] == (0,):
        raise InvalidInput(f"{name}: log-probabilities must be of equally many sequences, not of {sizes}")


def _check_above_zero(name: str, **options: float) -> None:
    for option, value in options.items():
        if not 0.0 < value < math.inf:
            raise InvalidInput(f"{name}: {option} must be finite and above 0, not {value}")


def _check_at_least_zero(name: str, **options: float) -> None:
    for option, value in options.items():
        if not 0.0 <= value < math.inf:
            raise InvalidInput(f"{name}: {option} must be finite and at least 0, not {value}")
