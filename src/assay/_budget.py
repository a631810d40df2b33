"""Who may measure now: an account of probing time per probe, filled by training time.

With a budget of b, a second of training puts b seconds into the accounts, in equal parts; what an account has no room
for (it holds the price of one measurement) flows to the others. A probe runs once its account holds its price, the
cost of its last measurement, and is charged what it then really took. A first measurement has no known price and a
first one does not tell much of a second (it loads, compiles, allocates), so these two run as soon as the account is
not in debt; a probe that calls itself dear waits until all probing so far is within the budget.

So probing never exceeds b times training by more than the cost of one measurement of every probe, whatever they cost;
an account's debt delays that probe alone. Nothing is saved up beyond one measurement, so there are no bursts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__: list[str] = []

_EMPTY = 1e-12


@dataclass
class Account:
    """What one probe cost so far, in seconds.

    Args:
        dear: Whether the probe says that it is.
        credit: What it may spend; below 0 it is in debt.
        seconds: What it spent.
        measurements: How often it was measured.
        last: What its last measurement cost, without the forward pass that it shared.
        shared: What its share of that pass cost.
    """

    dear: bool = False
    credit: float = 0.0
    seconds: float = 0.0
    measurements: int = 0
    last: float = 0.0
    shared: float = 0.0

    @property
    def price(self) -> float:
        """What its next measurement must be able to pay, without the shared pass."""
        return self.last if self.measurements > 1 else 0.0


class Ledger:
    """Accounts of training and probing.

    Args:
        dear: Whether it says of itself that it is dear, by probe.
        budget: Seconds of probing per second of training; None allows everything.
    """

    def __init__(self, dear: Mapping[str, bool], budget: float | None) -> None:
        self.accounts = {name: Account(dear=is_dear) for name, is_dear in dear.items()}
        self.budget = budget
        self.training = 0.0
        self.forward_pass = 0.0

    @property
    def probing(self) -> float:
        """Seconds that all measurements took."""
        return sum(account.seconds for account in self.accounts.values())

    def trained(self, seconds: float) -> None:
        """Count training time and fill the accounts."""
        self.training += seconds
        left = seconds * (self.budget or 0.0)
        while left > _EMPTY and (hungry := [a for a in self.accounts.values() if self._room(a) > _EMPTY]):
            part = left / len(hungry)
            for account in hungry:
                given = min(part, self._room(account))
                account.credit += given
                left -= given

    def _room(self, account: Account) -> float:
        known = account.measurements > 1 and account.shared > 0
        return account.price + (self.forward_pass if known else 0.0) - account.credit

    def affordable(self, due: Iterable[str], sharing: Iterable[str]) -> list[str]:
        """Return which of the probes that are due may be measured now.

        Args:
            due: Names of probes.
            sharing: Those that share one forward pass, which is paid in equal parts by those of them that are measured.
        """
        if self.budget is None:
            return list(due)
        shared = set(sharing)
        wanted = [name for name in due if self._ready(name)]
        alone = {name for name in wanted if name not in shared and self._pays(name, 0.0)}
        together = {name for name in wanted if name in shared}
        # Whoever drops out leaves a larger part of the pass to the others.
        while together:
            part = self.forward_pass / len(together)
            if (paying := {name for name in together if self._pays(name, part)}) == together:
                break
            together = paying
        return [name for name in wanted if name in alone | together]

    def _ready(self, name: str) -> bool:
        account = self.accounts[name]
        within = self.training > 0 and self.probing <= (self.budget or 0.0) * self.training
        return within or not account.dear or account.measurements > 0

    def _pays(self, name: str, part: float) -> bool:
        account = self.accounts[name]
        return account.credit >= (account.price + part if account.measurements > 1 else 0.0) - _EMPTY

    def charge(self, own: Mapping[str, float], sharing: Iterable[str], forward_pass: float) -> None:
        """Book one measurement.

        Args:
            own: Seconds by probe that was measured.
            sharing: Those of them that shared a forward pass.
            forward_pass: Seconds of that pass.
        """
        shared = set(sharing)
        if shared:
            self.forward_pass = forward_pass
        for name, seconds in own.items():
            account = self.accounts[name]
            account.last, account.shared = seconds, forward_pass / len(shared) if name in shared else 0.0
            account.measurements += 1
            account.seconds += account.last + account.shared
            account.credit -= account.last + account.shared

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per probe; see `assay.Watch.costs`."""
        return [
            {
                "probe": name,
                "dear": account.dear,
                "measurements": account.measurements,
                "seconds": account.seconds,
                "last": account.last + account.shared,
                "overhead": share(account.seconds, self.training),
            }
            for name, account in self.accounts.items()
        ]

    def to_plain(self) -> dict[str, Any]:
        """Return everything but the budget as plain data."""
        return {
            "training": self.training,
            "forward_pass": self.forward_pass,
            "probes": {name: dict(vars(account)) for name, account in self.accounts.items()},
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take over `to_plain`'s data; probes that are not there any more are left out."""
        self.training, self.forward_pass = float(plain["training"]), float(plain["forward_pass"])
        known = {f.name for f in fields(Account)} - {"dear"}
        for name, row in plain["probes"].items():
            if name in self.accounts:
                vars(self.accounts[name]).update({key: value for key, value in row.items() if key in known})


def share(probing: float, training: float) -> float:
    """Return probing time over training time; infinite before any training."""
    if training > 0:
        return probing / training
    return float("inf") if probing > 0 else 0.0
