import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.errors import InvalidInput
from assay.probes.collapse_in_memory import measure_collapse
from assay.probes.neural_collapse import NeuralCollapse


def simplex(K, d, generator=None):
    """K rows in d >= K dimensions that are a simplex ETF, randomly rotated."""
    basis = torch.linalg.qr(torch.randn(d, K, generator=generator, dtype=torch.float64))[0]
    return (torch.eye(K, dtype=torch.float64) - 1 / K) @ basis.T


def random_case(K=5, d=9, n=30, spread=0.5, seed=0, dtype=torch.float64):
    """Features about random means with unequal class sizes, and a random head."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.cat([torch.arange(K), torch.randint(K, (n * K - K,), generator=generator)])
    means = torch.randn(K, d, generator=generator, dtype=torch.float64) + 2
    features = means[targets] + spread * torch.randn(len(targets), d, generator=generator, dtype=torch.float64)
    head = nn.Linear(d, K, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return features.to(dtype), targets, head


def streamed(features, targets, head=None, batch=16, **options):
    """Feed both passes by hand, as a user without Watch would."""
    probe = NeuralCollapse(**options)
    for h, y in zip(features.split(batch), targets.split(batch), strict=True):
        probe.update(h, y, head=head)
    values = probe.compute()
    follower = probe.follow_up()
    if follower is not None and head is not None:
        for h, y in zip(features.split(batch), targets.split(batch), strict=True):
            follower.update(h, head(h).detach(), y)
        values |= follower.compute()
    return values


def reference(features, targets, head, centre="class"):
    """The definitions, class by class and sample by sample, in float64 NumPy."""
    h, y = features.double().numpy(), targets.numpy()
    W, b = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    K, N = len(W), len(h)
    mu = np.stack([h[y == k].mean(axis=0) for k in range(K)])
    mu_G = mu.mean(axis=0) if centre == "class" else h.mean(axis=0)
    Sigma_W = sum((x - mu[k])[:, None] * (x - mu[k])[None, :] for x, k in zip(h, y, strict=True)) / N
    Sigma_B = sum(np.outer(m - mu_G, m - mu_G) for m in mu) / K
    P = (np.eye(K) - 1 / K) / math.sqrt(K - 1)
    out = {
        "nc1": np.trace(Sigma_W @ np.linalg.pinv(Sigma_B, rcond=1e-9, hermitian=True)) / K,
        "nc1_trace": np.trace(Sigma_W) / np.trace(Sigma_B),
    }
    pairs = [(k, j) for k in range(K) for j in range(K) if k != j]
    v = [np.mean([np.sum((x - mu[k]) ** 2) for x in h[y == k]]) for k in range(K)]
    out["nc1_cdnv"] = np.mean([(v[k] + v[j]) / (2 * np.sum((mu[k] - mu[j]) ** 2)) for k, j in pairs])
    Wc, M = W - W.mean(axis=0), mu - mu_G
    frame = mu @ mu.T
    frame_error = np.linalg.norm(frame / np.linalg.norm(frame) - np.eye(K) / math.sqrt(K))
    out["nc2_of"] = frame_error if h.shape[1] >= K else math.nan
    out["nc3_frob"] = np.linalg.norm(W.T / np.linalg.norm(W) - M.T / np.linalg.norm(M))
    out["nc3_cos"] = 1 - np.mean([w @ m / np.linalg.norm(w) / np.linalg.norm(m) for w, m in zip(W, M, strict=True)])
    for rows, suffix in ((M, ""), (Wc, "_head")):
        lengths = np.array([np.linalg.norm(r) for r in rows])
        cosines = [rows[k] @ rows[j] / lengths[k] / lengths[j] for k in range(K) for j in range(K) if k != j]
        gram = rows @ rows.T
        out[f"nc2_equinorm{suffix}"] = np.std(lengths) / np.mean(lengths)
        out[f"nc2_equiangular{suffix}"] = np.std(cosines)
        out[f"nc2_maxangle{suffix}"] = np.mean(np.abs(np.array(cosines) + 1 / (K - 1)))
        out[f"nc2_etf{suffix}"] = np.linalg.norm(gram / np.linalg.norm(gram) - P)
    dual = Wc @ M.T
    out["nc3"] = np.linalg.norm(dual / np.linalg.norm(dual) - P)
    out["nc_bias"] = np.linalg.norm(W @ mu_G + b)
    out["nc_bias_centred"] = math.sqrt(K) * np.std(W @ mu_G + b)
    decided = (h @ W.T + b).argmax(axis=1)
    nearest = np.array([min(range(K), key=lambda k: np.linalg.norm(x - mu[k])) for x in h])
    out["nc4"] = np.mean(decided != nearest)
    out["ncc_accuracy"] = np.mean(nearest == y)
    return out


@pytest.mark.parametrize("K,d,n", [(2, 3, 10), (5, 9, 30), (10, 9, 8), (3, 40, 2)])
@pytest.mark.parametrize("measure", [streamed, measure_collapse])
def test_equals_the_definitions_written_slowly(measure, K, d, n):
    """A formula is wrong, or the K x K route differs from the pseudo-inverse of Sigma_B."""
    features, targets, head = random_case(K, d, n)
    expected, actual = reference(features, targets, head), measure(features, targets, head=head)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=1e-8, abs=1e-12, nan_ok=True), key


@pytest.mark.parametrize("measure", [streamed, measure_collapse])
def test_the_average_of_samples_can_be_the_centre(measure):
    """centre="sample" is ignored, or the null direction of unbalanced, sample-centred means is not the left-out one."""
    features, targets, head = random_case(5, 9, 30)
    expected = reference(features, targets, head, centre="sample")
    actual = measure(features, targets, head=head, centre="sample")
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=1e-8, abs=1e-12), key
    assert abs(actual["nc1"] / reference(features, targets, head)["nc1"] - 1) > 1e-3


@pytest.mark.parametrize("measure", [streamed, measure_collapse])
@pytest.mark.parametrize("K,d", [(3, 3), (4, 10), (10, 64)])
def test_a_simplex_is_collapsed_exactly(measure, K, d):
    """Perfect collapse does not give zeros."""
    means = simplex(K, d, torch.Generator().manual_seed(1))
    head = nn.Linear(d, K, bias=False, dtype=torch.float64)
    head.weight.data = 3 * means
    targets = torch.arange(K).repeat(4)
    values = measure(7 * means[targets], targets, head=head)
    assert values.pop("ncc_accuracy") == 1
    # |P - I/sqrt(K)|^2 = 2 - 2 tr P / sqrt(K), for centred means are no orthogonal frame
    frame = math.sqrt(2 - 2 * math.sqrt((K - 1) / K)) if d >= K else math.nan
    assert values.pop("nc2_of") == pytest.approx(frame, nan_ok=True)
    assert max(values.values()) < 1e-12


@pytest.mark.parametrize("measure", [streamed, measure_collapse])
def test_an_orthogonal_frame_is_one(measure):
    """Perfect collapse without a bias, means orthogonal and of equal length, has not nc2_of = 0."""
    basis = torch.linalg.qr(torch.randn(9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    targets = torch.arange(5).repeat(3)
    values = measure(3 * basis.T[targets], targets, num_classes=5)
    assert values["nc2_of"] < 1e-12 and values["nc2_etf"] < 1e-12


def test_one_sample_per_class_has_no_spread():
    """NC1 is a silent 0 because there is nothing to vary."""
    for measure in (streamed, measure_collapse):
        values = measure(torch.eye(4) + 1, torch.arange(4), num_classes=4)
        assert all(math.isnan(values[key]) for key in ("nc1", "nc1_trace", "nc1_cdnv")), measure
        assert values["nc2_etf"] < 1e-6
    probe = NeuralCollapse(4)
    probe.update(torch.eye(4), torch.arange(4))
    probe.compute()
    assert "single sample" in probe.skipped["nc1"]


def test_a_head_with_nan_weights_is_skipped_with_the_reason():
    """The head's measures are NaN and nobody says that it is the head."""
    features, targets, head = random_case()
    head.weight.data[1, 2] = math.nan
    probe = NeuralCollapse()
    probe.update(features, targets, head=head)
    values = probe.compute()
    assert math.isnan(values["nc3"]) and math.isfinite(values["nc1"])
    assert "head's weight or bias contains NaN" in probe.skipped["nc3_cos"]


def test_isotropic_noise_has_the_ratio_of_traces_of_its_variance():
    """nc1_trace is off by a factor (N against N-1, mean against sum)."""
    K, d, s = 4, 6, 0.3
    means, generator = simplex(K, d), torch.Generator().manual_seed(0)
    targets = torch.arange(K).repeat(20000)
    noise = s * torch.randn(len(targets), d, generator=generator, dtype=torch.float64)
    trace_B = means.square().sum().item() / K
    values = streamed(means[targets] + noise, targets, num_classes=K, batch=4096)
    assert values["nc1_trace"] == pytest.approx(s**2 * d / trace_B, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), batch=st.integers(1, 60), shift=st.floats(-10, 10))
def test_invariances(seed, scale, batch, shift):
    """The measures depend on rotation, scale or shift of the features, or on the order of samples."""
    features, targets, head = random_case(K=4, d=6, n=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    order = torch.randperm(len(targets), generator=generator)
    moved, turned = nn.Linear(6, 4, dtype=torch.float64), scale * features @ rotation + shift
    moved.weight.data, moved.bias.data = head.weight.data @ rotation / scale, head.bias.data
    moved.bias.data = head.bias.data - moved.weight.data @ torch.full((6,), shift, dtype=torch.float64)
    before = streamed(features, targets, head=head)
    after = streamed(turned[order], targets[order], head=moved, batch=batch)
    del before["nc2_of"]  # alone in looking at where the origin is
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measure", [streamed, measure_collapse])
def test_a_small_spread_keeps_its_digits(measure, dtype, spread):
    """The scatter is a difference of large sums: at spread 1e-4 and means of size 2 in float32 nothing would be left."""
    features, targets, head = random_case(K=5, d=9, n=40, spread=spread, dtype=dtype)
    expected = reference(features, targets, head)  # of the features as rounded: the algorithm's error only
    values = measure(features, targets, head=head)
    assert values["nc1"] == pytest.approx(expected["nc1"], rel=1e-4)
    assert values["nc1_trace"] == pytest.approx(expected["nc1_trace"], rel=1e-4)


def test_bfloat16_and_autocast_are_measured_in_float32():
    """Half precision features, or a surrounding autocast, cost the scatter its digits."""
    features, targets, _ = random_case(dtype=torch.bfloat16)
    expected = streamed(features.double(), targets, num_classes=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = streamed(features, targets, num_classes=5)
        in_float32 = streamed(features.float(), targets, num_classes=5)
    for values in (actual, in_float32):
        assert values["nc1"] == pytest.approx(expected["nc1"], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_of_processes_merge_exactly(dtype):
    """Gathered states of three processes, each with its own guesses and classes, give another result than one process."""
    features, targets, head = random_case(K=4, d=6, n=20, dtype=dtype)
    order = targets.argsort()
    features, targets = features[order], targets[order]
    whole, parts = NeuralCollapse(), [NeuralCollapse() for _ in range(3)]
    whole.update(features, targets, head=head)
    for part, h, y in zip(parts, features.tensor_split(3), targets.tensor_split(3), strict=True):
        part.update(h, y, head=head)
    gathered = parts[0]
    for name in (
        "counts",
        "guess",
        "offset",
        "squares",
        "scatter",
    ):  # what torchmetrics' sync does with dist_reduce_fx=None
        setattr(gathered, name, torch.stack([getattr(part, name) for part in parts]))
    actual, expected = gathered.compute(), whole.compute()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=1e-5, abs=1e-9, nan_ok=True), key


def test_forward_and_reset_follow_torchmetrics():
    """Used as a torchmetrics.Metric, a batch's value or the accumulated one is wrong."""
    features, targets, head = random_case(n=40)
    probe = NeuralCollapse(5)
    first = probe(features[:100], targets[:100], head=head)
    probe(features[100:], targets[100:], head=head)
    assert first["nc1"] == pytest.approx(measure_collapse(features[:100], targets[:100], head=head)["nc1"])
    assert probe.compute()["nc1"] == pytest.approx(measure_collapse(features, targets, head=head)["nc1"])
    probe.reset()
    probe.update(features[:100], targets[:100], head=head)
    assert probe.compute()["nc1"] == pytest.approx(first["nc1"])


def test_the_head_is_no_part_of_the_probe():
    """The user's layer shows up among the probe's parameters and would be moved or saved with it."""
    features, targets, head = random_case()
    probe = NeuralCollapse()
    probe.update(features, targets, head=head)
    assert not list(probe.parameters()) and not list(probe.children())


def test_memory_does_not_grow_with_samples():
    """The state keeps something per sample."""
    features, targets, _ = random_case(n=20)
    probe, sizes = NeuralCollapse(5), []
    for _ in range(3):
        probe.update(features, targets)
        sizes.append(sum(state.numel() for state in probe.metric_state.values()))
    assert sizes[0] == sizes[1] == sizes[2] == 2 * 5 + 2 * 5 * 9 + 9 * 9


@pytest.mark.parametrize("measure", ["stream", "memory"])
def test_what_is_undefined_is_nan_with_a_reason(measure):
    """An undefined quantity is a silent number, or a defined one is lost."""
    features, targets, head = random_case(K=4, d=6)
    narrow, constant = nn.Linear(2, 4, dtype=torch.float64), nn.Linear(6, 4, dtype=torch.float64)
    constant.weight.data.zero_()
    nan = features.clone()
    nan[3, 2] = math.nan
    everything = set(measure_collapse(features, targets, head=head))
    simplex_only = {"nc1", "nc2_equiangular", "nc2_maxangle", "nc2_etf", "nc3"}
    simplex_only |= {key for key in everything if key.endswith("_head")} - {"nc2_equinorm_head"} | {"nc2_of"}
    bias = {"nc_bias", "nc_bias_centred"}
    no_head = {key for key in everything if key.endswith("_head")} | {"nc3", "nc3_frob", "nc3_cos"} | bias
    cases = {
        "missing class": (features[targets != 2], targets[targets != 2], head, everything, "1 of 4 classes"),
        "one class": (features[targets == 2], targets[targets == 2], head, everything, "3 of 4 classes"),
        "NaN": (nan, targets, head, everything, "NaN"),
        "few dimensions": (features[:, :2], targets, narrow, simplex_only, "need 3 dimensions"),
        "no head": (features, targets, None, no_head | {"nc4"}, "no linear head"),
        "constant head": (features, targets, constant, no_head - bias, "rows of the head are equal"),
        "equal means": (torch.ones_like(features), targets, head, everything - {"nc2_equinorm_head"} - bias, ""),
    }
    for name, (h, y, layer, undefined, reason) in cases.items():
        if measure == "memory":
            values = measure_collapse(h, y, head=layer, num_classes=4)
        else:
            probe = NeuralCollapse(4)
            probe.update(h, y, head=layer)
            values = probe.compute()
            assert {key for key, value in values.items() if math.isnan(value)} <= set(probe.skipped), name
            assert reason in probe.skipped["nc3"], name
            del values["nc4"], values["ncc_accuracy"]
        found = {key for key, value in values.items() if math.isnan(value)}
        if name == "equal means":
            assert found >= {"nc1", "nc1_trace", "nc2_equinorm", "nc2_etf", "nc3"}, name
        else:
            assert found == undefined & set(values), name


@pytest.mark.parametrize(
    "features,targets,options,message",
    [
        (torch.ones(4, 2), torch.tensor([0, 1, 2, 5]), {"num_classes": 3}, "labels must lie in 0..2"),
        (torch.ones(4, 2), torch.tensor([0, 1, 2, -1]), {"num_classes": 3}, "range from -1"),
        (torch.ones(4, 2), torch.ones(4), {"num_classes": 3}, "integer classes"),
        (torch.ones(4, 2, 2), torch.zeros(4, dtype=torch.long), {"num_classes": 3}, "features must be"),
        (torch.ones(4, 2), torch.zeros(3, dtype=torch.long), {"num_classes": 3}, r"integer classes \(4,\)"),
        (torch.ones(4, 2), torch.zeros(4, dtype=torch.long), {}, "number of classes is unknown"),
    ],
)
def test_bad_input_is_refused(features, targets, options, message):
    """A mistake in the input gives a number or an obscure error."""
    with pytest.raises(InvalidInput, match=message):
        streamed(features, targets, **options)
    with pytest.raises(InvalidInput, match=message):
        measure_collapse(features, targets, **options)


def test_calls_in_the_wrong_order_are_refused():
    """Computing without samples, or the second pass before the first, gives garbage."""
    with pytest.raises(InvalidInput, match="no samples"), pytest.warns(UserWarning):
        NeuralCollapse(3).compute()
    with pytest.raises(InvalidInput, match="call compute before"):
        NeuralCollapse(3).follow_up()
    with pytest.raises(InvalidInput, match="at least 2"):
        NeuralCollapse(1)
    with pytest.raises(InvalidInput, match="centre must be"):
        NeuralCollapse(3, centre="median")
    probe = NeuralCollapse(3, nc4=False)
    probe.update(torch.eye(3), torch.arange(3))
    assert "nc4" not in probe.compute() and probe.follow_up() is None
