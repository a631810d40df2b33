from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.papers.liger_kernel.study import IMPLEMENTATIONS, Step, errors, head, measure, measure_model, step, study
from assay.streams import Streams


def small_head():
    """A head with more rows and classes than the study samples gradients of."""
    return head(100, 8, 90, torch.float32, torch.Generator().manual_seed(0))


def exact_step(hidden, weight, labels):
    """The step in float64 by autograd."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    loss = F.cross_entropy(hidden @ weight.T, labels)
    return Step(loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))


def test_errors_are_relative_to_float64():
    """The study's errors would not be those of loss and gradients, so its verdict on equality would mean nothing."""
    inputs = small_head()
    exact = exact_step(*inputs)
    assert max(errors(exact, *inputs, chunk=7).values()) < 1e-12
    off = Step(exact.loss * 1.01, exact.hidden * 1.02, exact.weight * 0.97)
    assert errors(off, *inputs) == pytest.approx({"loss_error": 0.01, "hidden_error": 0.02, "weight_error": 0.03})


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_every_implementation_computes_the_same_loss(name):
    """An arm would compute something else, and the comparison of memory and time would be void."""
    inputs = small_head()
    found = step(IMPLEMENTATIONS[name], *inputs)
    assert max(errors(found, *inputs).values()) < 1e-5
    assert inputs[0].grad is None and inputs[1].grad is None


def test_memory_of_a_step_is_at_least_its_gradients_and_repeats():
    """Peak memory would miss allocations that reuse freed memory, or vary from one trial to the next."""
    size = {"tokens": 512, "features": 512, "classes": 16384, "dtype": "float32"}
    gradients = (512 + 16384) * 512 * 4
    first, again = (measure(Streams("t", 0), implementation="assay", **size)["step_memory"] for _ in range(2))
    assert first >= gradients
    assert again == pytest.approx(first, rel=0.1)


def test_patched_and_unpatched_models_take_the_same_steps():
    """The arms would train different models, or the patch change what is learnt: equal memory would mean nothing."""
    pytest.importorskip("transformers")
    size = {"vocabulary": 512, "features": 64, "layers": 1, "sequences": 2, "context": 32}
    plain, patched = (measure_model(Streams("t", 0), patched=patched, **size) for patched in (False, True))
    assert patched["loss_after"] < patched["loss"]
    assert patched["loss_after"] == pytest.approx(plain["loss_after"], abs=1e-5)
    other = measure_model(Streams("t", 1), patched=True, **size)
    assert other["loss"] != patched["loss"]


def test_every_hyperparameter_of_the_models_has_its_own_source():
    """The Llama's width would be explained by the size of the head's benchmark."""
    desk = study("desk")
    assert "Llama 3 8B" in desk.source("Llama 128k, patched", "features")
    assert "16384" in desk.source("assay float32", "features")
