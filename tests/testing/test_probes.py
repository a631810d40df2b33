import re
from pathlib import Path

import pytest
import torch

import assay.testing
from assay.testing.probes import CASES, CHECKS

KEY = "value"


class Probe:
    """A model probe with a fault to choose."""

    def __init__(self, fault):
        self.fault, self.calls = fault, 0

    def measure(self, view, batches):
        """Measure a mean score, and do what a probe must not."""
        self.calls += 1
        pairs = list(batches)
        model, value = view.model, sum(float(view.scores(x).detach().sum()) for x, _ in pairs)
        if self.fault == "parameters":
            next(model.parameters()).data.mul_(2)
        if self.fault == "optimizer":
            torch.optim.SGD(model.parameters(), lr=0.0).step()
            model[4].weight.data.add_(1e-7)
        if self.fault == "global seed":
            value += float(torch.rand(1))
        if self.fault == "memory":
            value += self.calls
        if self.fault == "batches":
            value += len(pairs)
        if self.fault == "order":
            value += float(pairs[0][0][0, 0])
        if self.fault == "tensor":
            return {KEY: torch.tensor(value)}
        if self.fault == "nan":
            return {KEY: float("nan")}
        if self.fault == "unpicklable":
            self.lock = lambda: None
        return {KEY: value}


@pytest.mark.parametrize(
    "fault,check",
    [
        ("parameters", "leaves-no-trace"),
        ("optimizer", "leaves-no-trace"),
        ("global seed", "deterministic"),
        ("memory", "deterministic"),
        ("batches", "any-batches"),
        ("order", "any-order"),
        ("tensor", "returns-floats"),
        ("nan", "returns-floats"),
    ],
)
def test_a_faulty_probe_is_found(fault, check):
    """A check passes whatever the probe does."""
    CHECKS[check](lambda: Probe(None))
    with pytest.raises(AssertionError):
        CHECKS[check](lambda: Probe(fault))


def test_probes_that_cannot_be_pickled_are_found():
    """A probe with a lambda inside stops a parallel run only later."""

    def factory():
        probe = Probe(None)
        probe.lock = lambda: None
        return probe

    with pytest.raises(AssertionError, match="pickled"):
        CHECKS["pickles"](factory)


def test_every_public_probe_has_a_case():
    """A new probe is forgotten in the conformance table."""
    import inspect

    import assay.probes

    classes = {
        getattr(assay.probes, name) for name in assay.probes.__all__ if inspect.isclass(getattr(assay.probes, name))
    }
    probes = {c for c in classes if hasattr(c, "consumes") or hasattr(c, "measure")}
    tried = {base for factory in CASES.values() for base in type(factory()).__mro__}
    assert probes and probes <= tried


def test_the_probe_that_the_guide_teaches_passes():
    """The guide teaches a probe that Assay itself refuses."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "watch.md").read_text(encoding="utf-8")
    snippet = next(s for s in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "class MeanMargin" in s)
    space: dict[str, object] = {"__name__": "guide"}
    exec("import torch\n" + snippet.split("\nwatch =")[0], space)
    # Code of a string can't be pickled; the snippet trusts its labels.
    assay.testing.check("probes", space["MeanMargin"], skip={"refuses-bad-labels", "pickles"})
