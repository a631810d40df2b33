"""The energy that each hidden node climbs while features emerge, and the signal that reaches it from the top layer.

Tian (2025, arXiv:2509.21519): energy E, backpropagated signal G_F, and its form when the top layer is ridge-optimal.

    E_j = 1/2 |Yc^T f_j|^2                    dE_j/df_j = Yc Yc^T f_j                         Yc = P Y, Fc = P F
    G_F = (Yc - Fc V) V^T                     minus the gradient of 1/2 |Yc - Fc V|^2 by Fc
    V ridge-optimal, weight eta:  G_F = eta A Yc Yc^T A Fc = P_eta Yc Yc^T Fc B, with P_eta = eta A,
                                  A = (Fc Fc^T + eta I)^-1 (n, n), B = (Fc^T Fc + eta I)^-1 (K, K)

The last line holds exactly. It says that without weight decay nothing reaches a fitted network's features, that the
signal is proportional to eta while eta is small, and that where A is nearly a scalar each node climbs its own energy.

Symbols: n samples, K nodes (features), C classes, features F (n, K), targets Y (n, C), one-hot where labels are given,
top layer V (K, C), P = I - 1 1^T / n. In the paper w is bound to |w| = 1 and f = sigma(X w): for the square and a
single frequency of addition modulo M, on all M^2 pairs, inputs scaled to norm 1, E = M / 16 (M / 8 for the alternating
mode of even M). With inputs of norm sqrt(2), as one-hot pairs have, the square's E is four times that.

Departures: E and its gradient take activations instead of weights and inputs, so that they serve any layer; chaining
through sigma and X is autograd's.

Cost: energy O(n K C); the ridge signal one Cholesky factor of the smaller of n and K.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["backprop_signal", "energy_gradient", "feature_energy", "ridge_head", "ridge_signal"]


def feature_energy(features: Tensor, targets: Tensor) -> Tensor:
    """Return the energy E_j = 1/2 |Yc^T f_j|^2 of each node (K,), differentiable.

    Args:
        features: Activations F (n, K).
        targets: Classes (n,), or any targets (n, C).

    Raises:
        InvalidInput: If the shapes do not fit.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> feature_energy(torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 1.0], [0.0, -1.0]]), labels)
        tensor([1., 0.])
    """
    return (_centred_targets(features, targets).T @ features).square().sum(dim=0) / 2


def energy_gradient(features: Tensor, targets: Tensor) -> Tensor:
    """Return dE_j/df_j = Yc Yc^T f_j as columns (n, K); arguments as `feature_energy`."""
    Y = _centred_targets(features, targets)
    return Y @ (Y.T @ features)


def backprop_signal(features: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    """Return G_F = (Yc - Fc V) V^T (n, K).

    Args:
        features: Activations F (n, K).
        targets: Classes (n,), or any targets (n, C).
        head: Top layer V (K, C), the transpose of a linear layer's weight.

    Raises:
        InvalidInput: If the shapes do not fit.
    """
    Y = _centred_targets(features, targets)
    if head.shape != (features.shape[1], Y.shape[1]):
        raise InvalidInput(f"head must be ({features.shape[1]}, {Y.shape[1]}), not {tuple(head.shape)}")
    return (Y - _centred(features) @ head) @ head.T


def ridge_head(features: Tensor, targets: Tensor, eta: float) -> Tensor:
    """Return the top layer V (K, C) that minimises 1/2 |Yc - Fc V|^2 + eta/2 |V|^2.

    Args:
        features: Activations F (n, K).
        targets: Classes (n,), or any targets (n, C).
        eta: Weight decay, above 0. A mean squared error over samples (sum over classes) and coupled weight decay
            lambda amount to eta = lambda n / 2.

    Raises:
        InvalidInput: If eta is not above 0 or the shapes do not fit.
    """
    _check_eta(eta)
    Y, centred = _centred_targets(features, targets), _centred(features)
    if len(centred) < centred.shape[1]:
        return centred.T @ _solve(centred @ centred.T, eta, Y)
    return _solve(centred.T @ centred, eta, centred.T @ Y)


def ridge_signal(features: Tensor, targets: Tensor, eta: float) -> Tensor:
    """Return G_F (n, K) for the ridge-optimal top layer, as eta A Yc Yc^T A Fc; arguments as `ridge_head`.

    Written so, the signal keeps its digits when eta is small, where the residual Yc - Fc V would be a difference of
    nearly equal numbers.

    Example:
        >>> import torch
        >>> features, labels = torch.tensor([[1.0], [0.5], [-1.0]]).double(), torch.tensor([0, 0, 1])
        >>> V = ridge_head(features, labels, eta=0.1)
        >>> torch.allclose(ridge_signal(features, labels, 0.1), backprop_signal(features, labels, V))
        True
    """
    _check_eta(eta)
    Y, centred = _centred_targets(features, targets), _centred(features)
    if len(centred) <= centred.shape[1]:
        solved = _solve(centred @ centred.T, eta, torch.cat([Y, centred], dim=1))
        return eta * solved[:, : Y.shape[1]] @ (Y.T @ solved[:, Y.shape[1] :])
    # A Fc = Fc B, and eta A Yc = Yc - Fc B Fc^T Yc
    S = centred.T @ Y
    B = _solve(centred.T @ centred, eta, torch.eye(len(S), dtype=S.dtype, device=S.device))
    return (Y - centred @ (B @ S)) @ (S.T @ B)


def _solve(gram: Tensor, eta: float, right: Tensor) -> Tensor:
    gram = gram.clone()
    gram.diagonal().add_(eta)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


def _centred(features: Tensor) -> Tensor:
    return features - features.mean(dim=0)


def _centred_targets(features: Tensor, targets: Tensor) -> Tensor:
    """Return Yc in the type of the features, after checking shapes."""
    if features.ndim != 2 or not features.is_floating_point() or len(features) == 0:
        raise InvalidInput(f"features must be floats (samples, nodes), not {features.dtype} {tuple(features.shape)}")
    if targets.ndim not in (1, 2) or len(targets) != len(features):
        raise InvalidInput(
            f"targets must be classes ({len(features)},) or a matrix ({len(features)}, classes), "
            f"not {targets.dtype} {tuple(targets.shape)}"
        )
    if targets.ndim == 1 and (targets.is_floating_point() or int(targets.min()) < 0):
        raise InvalidInput("targets (n,) must be integer classes from 0; give other targets as a matrix (n, C)")
    Y = F.one_hot(targets.long()) if targets.ndim == 1 else targets
    return _centred(Y.to(features.dtype))


def _check_eta(eta: float) -> None:
    if not 0 < eta < float("inf"):
        raise InvalidInput(f"eta must be above 0 (without weight decay the signal is 0), not {eta}")
