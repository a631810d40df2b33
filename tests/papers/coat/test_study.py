"""What the study of coat adds of its own: a fair comparison, counted bytes, errors of stored moments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.nn.fp8 import FP8Linear
from assay.papers.coat.study import ARMS, Decoder, moment_errors, saved_bytes, state_bytes, study, train
from assay.streams import Streams

SIZES = {"vocabulary": 11, "context": 8, "features": 32, "hidden": 48, "heads": 2, "layers": 2}


def decoder(fp8: bool) -> Decoder:
    """A decoder as a trial of seed 0 builds it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(**SIZES, fp8=fp8)


def test_both_decoders_begin_as_the_same_function() -> None:
    """The arms would differ in their initial weights, or the FP8 layers compute something else than the plain ones."""
    plain, fp8 = decoder(False), decoder(True)
    assert plain.state_dict().keys() == fp8.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), fp8.parameters(), strict=True))
    assert sum(isinstance(module, FP8Linear) for module in fp8.modules()) == 2 * 5
    tokens = torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(1))
    expected = plain(tokens)
    assert 0 < (fp8(tokens) - expected).norm() / expected.norm() < 0.1


def test_the_decoder_does_not_see_the_future() -> None:
    """A score would depend on the characters it is to predict, and every loss be worthless."""
    model, tokens = decoder(False), torch.zeros(1, 8, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 5] = 3
    torch.testing.assert_close(model(changed)[0, :5], model(tokens)[0, :5])
    assert not torch.equal(model(changed)[0, 5], model(tokens)[0, 5])


def test_arms_differ_in_states_and_activations_only() -> None:
    """An arm would win by another learning rate, budget or model."""
    for scale in ("smoke", "desk", "paper"):
        descriptions = [arm.describe() for arm in study(scale).arms.values()]
        assert len({(d.pop("optimizer"), d.pop("activations")) for d in descriptions}) == len(ARMS)
        assert all(d == descriptions[0] for d in descriptions)
    assert all("betas=(0.9, 0.95), weight_decay=0.1" in optimizer for optimizer, _ in ARMS.values())


def test_saved_bytes_of_a_known_layer() -> None:
    """Parameters would be counted, or a tensor that two operations share counted twice."""
    layer = nn.Sequential(nn.Linear(8, 4), nn.SiLU(), nn.Linear(4, 8))
    assert saved_bytes(layer, 8, tokens=10) == 10 * 2 * (8 + 4 + 4)


def test_moment_errors_against_the_definition() -> None:
    """Numbers of the verdict on expansion would be those of other moments, or averaged over vectors too."""
    matrix, vector = nn.Parameter(torch.ones(16, 16)), nn.Parameter(torch.ones(16))
    optimizer = torch.optim.AdamW([matrix, vector])
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        matrix.grad, vector.grad = (torch.randn(p.shape, generator=generator).exp() for p in (matrix, vector))
        optimizer.step()
    errors = moment_errors(optimizer)
    v = optimizer.state[matrix]["exp_avg_sq"].view(2, 128)
    scale = v.amax(1, keepdim=True)
    plain = (v / scale * 448).to(torch.float8_e4m3fn).float() / 448 * scale
    assert errors["square_error_plain"] == pytest.approx(float((plain / v - 1).abs().mean()), rel=1e-3)
    assert errors["square_error_gain"] == pytest.approx(errors["square_error_plain"] / errors["square_error_expanded"])
    assert errors["direction_error_gain"] > 1
    assert state_bytes(optimizer) == 8 * (256 + 16)


def test_a_trial_repeats_and_does_not_touch_the_global_generator() -> None:
    """Two runs of one seed would differ, or seeds not be paired over the arms."""
    arguments = study("smoke").arms["coat"].describe()
    del arguments["function"]
    before = torch.get_rng_state()
    first, second = (train(Streams("t", 0), **arguments) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.metrics == second.metrics and first.series == second.series
    assert first.series["validation_loss"].steps == (3.0, 6.0)


def test_divergence_is_reported() -> None:
    """A run that diverged would be recorded as a loss of NaN."""
    arguments = {**study("smoke").arms["float32"].describe(), "lr": 1e30}
    del arguments["function"]
    with pytest.raises(FloatingPointError, match="step"):
        train(Streams("t", 0), **arguments)
