"""The simulated system against its equation in complex NumPy, and against the statistics it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.nn.random_scattering import RandomScattering


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _system(n: int = 5, m: int = 4, **options: float) -> RandomScattering:
    return RandomScattering(n, m, generator=_generator(), **options).double()


def _inputs(n: int = 5, rows: int = 7) -> Tensor:
    return torch.randn(rows, n, generator=_generator(1)).double()


def test_response_is_the_equation() -> None:
    """Detectors would not see the saturating modulus of a complex random field."""
    system, h = _system(saturation=0.3), _inputs()
    real, imaginary = system.transmission.numpy()[:4], system.transmission.numpy()[4:]
    matrix = real + 1j * imaginary
    for row, found in zip(h.numpy(), system(h).numpy(), strict=True):
        v = np.abs(row) * math.sqrt(5) / np.linalg.norm(row)
        z = np.abs(matrix @ v)
        np.testing.assert_allclose(found, z / (1 + 0.3 * z**2), rtol=1e-9)


def test_only_the_direction_of_the_magnitudes_matters() -> None:
    """The source's fixed power, or its blindness to signs, would be lost."""
    system, h = _system(), _inputs()
    torch.testing.assert_close(system(h), system(-7 * h))
    assert torch.isfinite(system(torch.zeros(2, 5).double())).all()


def test_mean_power_at_the_detectors_is_one() -> None:
    """The field would be so weak that detectors are linear, or so strong that they are saturated."""
    system = RandomScattering(300, 4000, saturation=0.0, generator=_generator())
    power = system(torch.randn(20, 300, generator=_generator(1))).square().mean()
    assert power.item() == pytest.approx(1, abs=0.03)


def test_a_twin_is_wrong_by_what_it_says() -> None:
    """Model and system would differ by another amount than asked for, or a perfect model differ at all."""
    system = RandomScattering(200, 100, generator=_generator())
    before = system.transmission.clone()
    assert torch.equal(system.twin(0.0, _generator(1)).transmission, before)
    error = system.twin(0.5, _generator(1)).transmission - before
    assert error.std().item() * math.sqrt(2 * 200) == pytest.approx(0.5, rel=0.02)
    assert abs((error * before).mean()).item() < 4 * 0.5 / 400 / math.sqrt(before.numel())
    assert torch.equal(system.transmission, before)


def test_drift_changes_the_system_in_place() -> None:
    """A drifted system would go on as before, or depend on more than the generator."""
    system, same = _system(), _system()
    h = _inputs()
    before = system(h)
    system.drift(0.3, _generator(2))
    same.drift(0.3, _generator(2))
    assert not torch.allclose(system(h), before) and torch.equal(system(h), same(h))


def test_noise_has_its_size_and_repeats_only_in_evaluation() -> None:
    """Training would meet the same noise again and again, or a prediction not be repeatable."""
    system = RandomScattering(5, 400, noise=0.2, generator=_generator())
    clean = RandomScattering(5, 400, generator=_generator())
    h = _inputs(rows=50).float()
    first, second = system(h), system(h)
    assert (first - clean(h)).std().item() == pytest.approx(0.2, rel=0.03)
    assert not torch.equal(first, second)
    system.eval()
    assert torch.equal(system(h), system(h)) and not torch.equal(system(h), clean(h))
    assert torch.equal(system.twin(0.0)(h), clean(h)), "a model has no noise"


def test_noise_goes_on_where_it_was() -> None:
    """A resumed run would meet other noise."""
    system, resumed = _system(noise=0.2), _system(noise=0.2)
    h = _inputs()
    system(h)
    resumed.load_state_dict(system.state_dict())
    assert torch.equal(system(h), resumed(h))


def test_a_loaded_system_evaluates_the_same() -> None:
    """A network loaded into one of another seed would predict with other noise."""
    system, loaded = _system(noise=0.2), RandomScattering(5, 4, noise=0.2, generator=_generator(3)).double()
    loaded.load_state_dict(system.state_dict())
    h = _inputs()
    assert torch.equal(system.eval()(h), loaded.eval()(h))


@pytest.mark.parametrize(
    "arguments", [{"in_features": 0}, {"out_features": 0}, {"saturation": -0.1}, {"noise": float("nan")}]
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    """An impossible system would be simulated."""
    with pytest.raises(InvalidInput, match="expected sizes"):
        RandomScattering(**({"in_features": 2, "out_features": 2} | arguments))
