"""Every part of ours against every conformance check of its seam; known failures must really fail."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import pytest
import torch

from assay.testing import EXPECTED_FAILURES, SEAMS, cases, check, checks


def _there(seam: str) -> bool:
    return importlib.util.find_spec(f"assay.testing.{seam}") is not None


def _parameters() -> list[object]:
    """One parameter set per seam, case and check; a strict expected failure where the table says so."""
    sets = []
    for seam in filter(_there, SEAMS):
        for case, factory in cases(seam).items():
            for name, run in checks(seam).items():
                reason = EXPECTED_FAILURES.get((seam, case, name))
                marks = [pytest.mark.xfail(strict=True, reason=reason, raises=AssertionError)] if reason else []
                sets.append(pytest.param(factory, run, id=f"{seam}-{case}-{name}", marks=marks))
    return sets


@pytest.mark.parametrize(("factory", "run"), _parameters())
def test_part_passes_the_check(factory: Callable[[], object], run: Callable[[Callable[[], object]], None]) -> None:
    """A part would break one of the promises that its seam makes to users."""
    run(factory)


# Classes of a seam that are no criteria, optimizers or transforms: their own tests cover them.
OTHER = {
    "losses": {"MultiplicativeDSM"},  # takes a score network and data, not scores and targets
    "optim": {  # what decides batch sizes, and a factored matrix
        "AdaptiveBatch",
        "AugmentedInnerProductTest",
        "CoordinateNormTest",
        "InnerProductTest",
        "LowRank",
        "NormTest",
    },
}


@pytest.mark.parametrize("seam", SEAMS)
def test_seam_with_parts_has_checks(seam: str) -> None:
    """Parts would be published at a seam without any conformance check or any case."""
    parts = importlib.import_module(f"assay.{seam}").__all__
    assert not parts or (_there(seam) and cases(seam) and checks(seam))


def test_every_expected_failure_names_a_case_and_a_check() -> None:
    """The table, which the docs show to users, would speak of cases or checks that no longer exist."""
    stale = [key for key in EXPECTED_FAILURES if key[1] not in cases(key[0]) or key[2] not in checks(key[0])]
    assert not stale
    assert all(reason.strip() for reason in EXPECTED_FAILURES.values())


@pytest.mark.parametrize("seam", ["losses", "optim"])
def test_every_class_of_the_seam_is_in_a_case(seam: str) -> None:
    """A new part would escape the conformance checks because nobody wrote a case for it."""
    package = importlib.import_module(f"assay.{seam}")
    classes = {name for name in package.__all__ if isinstance(getattr(package, name), type)}
    made = [factory() for factory in cases(seam).values()]
    if seam == "optim":
        made = [make([torch.nn.Parameter(torch.ones(2))]) for make in made]  # type: ignore[operator]
    # What needs more than (scores, targets) is wrapped in a criterion that supplies the rest.
    parts = [module for part in made for module in (part.modules() if isinstance(part, torch.nn.Module) else [part])]
    assert classes - OTHER.get(seam, set()) <= {type(part).__name__ for part in parts}


class _Shifting(torch.nn.Module):
    """A criterion that is wrong: it draws noise from the global generator."""

    def forward(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(scores + torch.rand(()) * scores, targets)


def test_checks_reject_a_bad_loss() -> None:
    """The checks would pass anything: a noisy criterion must fail and be told why."""
    with pytest.raises(AssertionError, match=r"global generator"):
        check("losses", _Shifting)


def test_checks_reject_a_transform_that_cannot_be_removed() -> None:
    """The checks would pass a transform that goes on after its removal."""

    class Doubling:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer
            optimizer.register_step_pre_hook(self._double)

        def _double(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            for parameter in optimizer.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter.grad *= 2

        def remove(self) -> None: ...

        def __enter__(self) -> Doubling:
            return self

        def __exit__(self, *error: object) -> None: ...

    with pytest.raises(AssertionError, match=r"after remove\(\)"):
        check(
            "optim",
            lambda: lambda parameters: Doubling(torch.optim.SGD(parameters, lr=0.1)),
            skip=["copying", "closure"],
        )
