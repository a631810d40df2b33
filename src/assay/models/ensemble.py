"""Deep ensemble: networks of one shape, each with its own initial weights, that run and train as one batched network.

The members' parameters are stacked along a new first dimension and every forward pass is one `torch.func.vmap` over
them (`stack_module_state` in the torch.func tutorial on ensembling): M small products become one batched product.

Shapes: M members, B samples, K classes; a parameter (...) of a member is (M, ...) here, under the member's own name
behind "members.". The members never interact: the gradient of a sum of their losses is each one's own, and an optimizer
that works entry by entry (SGD, Adam, AdamW) trains them exactly as it would one after the other. One that looks at a
whole tensor (LAMB, Muon, clipping by the global norm) does not.

Departures: batch norm's running statistics are refused; the order in which each member sees its samples is the
training loop's affair, `member_orders` draws it. Dropout differs between members, from torch's global generator.
Cost: M times one network, in time less the overhead of M - 1 calls.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from assay.errors import InvalidInput

__all__ = ["Ensemble", "member_orders"]


class Ensemble(nn.Module):
    """M members trained side by side; as a classifier it predicts the mean of their probabilities.

    Args:
        make: Returns one member; it is called M times with a generator of its own, which draws the initial weights.
        members: M, at least 2.
        generator: Seeds the members' generators; None is a fixed seed, never the global generator.

    Raises:
        InvalidInput: If there are fewer than 2 members, or a member has buffers.

    Example:
        >>> from assay.models.mlp import MLP
        >>> ensemble = Ensemble(lambda generator: MLP((4,), 3, width=8, generator=generator), members=5)
        >>> x = torch.zeros(7, 4)
        >>> ensemble.member_scores(x).shape, ensemble(x).exp().sum(1).allclose(torch.ones(7))
        (torch.Size([5, 7, 3]), True)
    """

    def __init__(
        self, make: Callable[[torch.Generator], nn.Module], members: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if members < 2:
            raise InvalidInput(f"an ensemble needs at least 2 members, not {members}")
        made = [make(each) for each in _generators(members, generator)]
        if buffers := [name for name, _ in made[0].named_buffers()]:
            raise InvalidInput(f"a member has buffers ({buffers[0]}), which members can't share; leave batch norm out")
        stacked, _ = stack_module_state(made)
        self.size = members
        self.members = _with_parameters(made[0], stacked)
        # In a tuple, since it is no part of the ensemble: the shape of one member, without memory.
        self._member = (copy.deepcopy(made[0]).to("meta"),)

    def member_scores(self, x: Tensor, *, shared: bool = True) -> Tensor:
        """Return each member's scores (M, B, K).

        Args:
            x: Inputs (B, ...) that all members get, or (M, B, ...) where each has a batch of its own.
            shared: Which of the two x is.

        Raises:
            InvalidInput: If x is not shared and has not M batches.
        """
        if not shared and len(x) != self.size:
            raise InvalidInput(f"expected a batch for each of {self.size} members, got {len(x)}")
        parameters: dict[str, Tensor] = dict(self.members.named_parameters(remove_duplicate=False))
        (member,) = self._member
        member.train(self.training)

        def scores(of_one: dict[str, Tensor], inputs: Tensor) -> Any:
            return functional_call(member, of_one, (inputs,))

        return vmap(scores, in_dims=(0, None if shared else 0), randomness="different")(parameters, x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the members' mean probabilities (B, K), for inputs (B, ...)."""
        return self.member_scores(x).log_softmax(-1).logsumexp(0) - torch.tensor(self.size).log().to(x.device)

    def member(self, index: int) -> nn.Module:
        """Return a copy of one member as an ordinary network."""
        single = copy.deepcopy(self.members)
        parameters = {name: p.detach()[index].clone() for name, p in self.members.named_parameters()}
        return _with_parameters(single, parameters)


def member_orders(
    samples: int, members: int, generator: torch.Generator | None = None, *, bootstrap: bool = False
) -> Tensor:
    """Return for each member the order of one epoch as indices (M, N).

    Args:
        samples: N.
        members: M.
        generator: Draws the orders; None is a fixed seed.
        bootstrap: Draw N samples with replacement instead of a permutation. For a bootstrap ensemble draw once and
            reshuffle, so that a member keeps its sample over the epochs.

    Example:
        >>> member_orders(5, 2).sort(1).values.tolist()
        [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    """
    generators = _generators(members, generator)
    if bootstrap:
        return torch.stack([torch.randint(samples, (samples,), generator=each) for each in generators])
    return torch.stack([torch.randperm(samples, generator=each) for each in generators])


def _generators(members: int, generator: torch.Generator | None) -> list[torch.Generator]:
    """Return one generator per member, seeded by the given one."""
    generator = generator or torch.Generator().manual_seed(0)
    seeds = torch.randint(2**62, (members,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _with_parameters(module: nn.Module, parameters: dict[str, Tensor]) -> nn.Module:
    """Return the module with other parameters in the places of its own; a tied one stays tied."""
    replaced: dict[int, nn.Parameter] = {}
    for name, old in list(module.named_parameters(remove_duplicate=False)):
        if id(old) not in replaced:
            replaced[id(old)] = nn.Parameter(parameters[name].detach(), requires_grad=old.requires_grad)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, replaced[id(old)])
    return module
