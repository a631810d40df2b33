"""USEFUL shows a second time, in every epoch, the examples whose outputs were not yet right early in training.

Paper: "Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution Generalization"
(arXiv:2404.17768), its algorithm; UpSample Early For Uniform Learning:

    1. train for a few epochs (5 to 10% of all) and take the outputs f(x) and losses of the training examples
    2. split each class in two by 2-means on its outputs
    3. U = in every class, the half with the larger mean loss
    4. train anew, from the initial weights, on the training examples together with a second copy of U

Shapes: n examples, K outputs, u = |U| upsampled examples.

Examples are clustered by output and chosen by loss; taking those of the highest loss is another method, and so is
going on from the weights of step 1. Labels that are wrong are learned late, too, and get upsampled.
Departures: the outputs are scores, not probabilities (the text leaves it open); a class with fewer than two different
outputs can't be split and is left alone, with a warning.
Cost: the short training, one pass over the data, and 2-means on n K numbers; then (n + u) / n of an epoch per epoch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler

from assay.errors import InvalidInput

__all__ = ["UsefulSampler", "early_outputs", "useful_indices"]

RESTARTS = 10


def early_outputs(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `useful_indices` reads, from one pass over the training data in evaluation mode.

    Args:
        model: The briefly trained classifier; its modules' modes are as before afterwards.
        batches: (inputs, int64 labels) in the data's own order: unshuffled, every example once, not augmented.

    Returns:
        Scores (n, K), cross-entropy of each example (n,) and labels (n,), on the CPU.

    Raises:
        InvalidInput: If there is no batch.

    Example:
        >>> scores, losses, labels = early_outputs(nn.Linear(2, 3), [(torch.ones(4, 2), torch.arange(4) % 3)])
        >>> scores.shape, losses.shape, labels.tolist()
        (torch.Size([4, 3]), torch.Size([4]), [0, 1, 2, 0])
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            pairs = [(model(x), y) for x, y in batches]
    finally:
        for module in training:
            module.training = True
    if not pairs:
        raise InvalidInput("the training data gave no batch; expected every example once")
    losses = [F.cross_entropy(scores, y, reduction="none").cpu() for scores, y in pairs]
    return torch.cat([scores.cpu() for scores, _ in pairs]), torch.cat(losses), torch.cat([y.cpu() for _, y in pairs])


def useful_indices(outputs: Tensor, losses: Tensor, targets: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the examples to show twice: in every class, the half with the larger mean loss.

    Args:
        outputs: Early scores (n, K); a single output (n, 1) will do.
        losses: Loss of each example (n,).
        targets: Integer labels (n,); each class is split on its own.
        seed: Of the ten starts of 2-means.

    Returns:
        Indices (u,) of U in ascending order, and the half (n,) that each example is in: 1 for U, 0 for the rest.

    Raises:
        InvalidInput: If shapes disagree, there is no example, or an output or loss is NaN or infinite.

    Example:
        >>> outputs = torch.tensor([[0.0], [0.1], [4.0], [4.1], [4.2]])
        >>> upsampled, halves = useful_indices(outputs, torch.tensor([2.0, 2.0, 0.1, 0.2, 0.1]), torch.zeros(5).long())
        >>> upsampled.tolist(), halves.tolist()
        ([0, 1], [1, 1, 0, 0, 0])
    """
    _check(outputs, losses, targets)
    # float64, since scores of very different size would lose their small differences
    outputs, losses, targets = outputs.detach().double().cpu(), losses.detach().double().cpu(), targets.cpu()
    halves = torch.zeros(len(targets), dtype=torch.long)
    alone = []
    for label in targets.unique():
        members = (targets == label).nonzero().squeeze(1)
        if len(outputs[members].unique(dim=0)) < 2:
            alone.append(int(label))
            continue
        half = _two_means(outputs[members], seed)
        means = [losses[members[half == k]].mean() for k in (0, 1)]
        halves[members] = half if means[1] >= means[0] else 1 - half
    if alone:
        warnings.warn(f"all outputs are equal in class {', '.join(map(str, alone))}: nothing upsampled", stacklevel=2)
    return halves.nonzero().squeeze(1), halves


def _two_means(outputs: Tensor, seed: int) -> Tensor:
    # here, since scikit-learn takes long to import
    from sklearn.cluster import KMeans

    means = KMeans(n_clusters=2, n_init=RESTARTS, random_state=seed)
    return torch.from_numpy(means.fit_predict(outputs.numpy())).long()


def _check(outputs: Tensor, losses: Tensor, targets: Tensor) -> None:
    n = len(targets)
    if outputs.ndim != 2 or losses.shape != (n,) or targets.shape != (n,) or len(outputs) != n or n == 0:
        raise InvalidInput(
            "expected outputs (n, K), losses (n,) and targets (n,) of at least one example; got "
            f"{tuple(outputs.shape)}, {tuple(losses.shape)} and {tuple(targets.shape)}"
        )
    if targets.is_floating_point():
        raise InvalidInput(f"targets must be integer class labels, not {targets.dtype}")
    for name, tensor in (("outputs", outputs), ("losses", losses)):
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise InvalidInput(
                f"{name} contain {bad} NaN or infinite values; train the early model with a smaller step"
            )


class UsefulSampler(Sampler[int]):
    """Draws every example once per epoch, and the upsampled ones twice, in random order.

    Use it as `DataLoader(dataset, batch_size, sampler=UsefulSampler(...))`; a random augmentation inside the data set
    then gives two different views of an example that comes twice.

    Args:
        num_samples: n, the length of the data set.
        upsampled: Different indices (u,) below n, such as `useful_indices` returns.
        generator: Shuffles the epochs; None is a fixed one, never the global generator.

    Raises:
        InvalidInput: If an index is out of range or comes twice.

    Example:
        >>> sampler = UsefulSampler(4, torch.tensor([2]))
        >>> len(sampler), sorted(sampler)
        (5, [0, 1, 2, 2, 3])
    """

    def __init__(self, num_samples: int, upsampled: Tensor, generator: torch.Generator | None = None) -> None:
        upsampled = upsampled.cpu().long()
        if len(upsampled) and not 0 <= int(upsampled.min()) <= int(upsampled.max()) < num_samples:
            raise InvalidInput(f"upsampled indices must be from 0 to {num_samples - 1}; got {_range(upsampled)}")
        if upsampled.ndim != 1 or len(upsampled.unique()) != len(upsampled):
            raise InvalidInput("upsampled must be a vector of different indices: an example is shown at most twice")
        self.indices = torch.cat([torch.arange(num_samples), upsampled])
        self.generator = generator or torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.indices), generator=self.generator)
        return iter(self.indices[order].tolist())


def _range(indices: Tensor) -> str:
    return f"{int(indices.min())} to {int(indices.max())}"
