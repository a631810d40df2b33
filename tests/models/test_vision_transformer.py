from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from assay.data import digits
from assay.errors import InvalidInput
from assay.models import KolmogorovArnoldTransformer, VisionTransformer


def seeded(seed=0):
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def test_patches_are_cut_row_by_row():
    """Tokens would mix pixels of different places."""
    model = VisionTransformer((2, 4, 6), 3, width=8, depth=1, heads=2, generator=seeded())
    images = torch.randn(5, 2, 4, 6, generator=seeded(1))
    patches = model.patches
    for index, (row, column) in enumerate((i, j) for i in range(0, 4, 2) for j in range(0, 6, 2)):
        piece = images[:, :, row : row + 2, column : column + 2].flatten(1)
        expected = patches.projection(piece) + patches.position[index]
        torch.testing.assert_close(patches(images)[:, index], expected)


def test_attention_is_torchs():
    """Heads or queries, keys and values would be mixed up."""
    model = VisionTransformer((1, 4, 4), 3, width=8, depth=1, heads=2, generator=seeded())
    own, theirs = model.block1.attention, torch.nn.MultiheadAttention(8, 2, batch_first=True)
    weights = {"in_proj": own.projection, "out_proj": own.output}
    theirs.load_state_dict(
        {
            "in_proj_weight": weights["in_proj"].weight,
            "in_proj_bias": weights["in_proj"].bias,
            "out_proj.weight": weights["out_proj"].weight,
            "out_proj.bias": weights["out_proj"].bias,
        }
    )
    tokens = torch.randn(3, 5, 8, generator=seeded(1))
    torch.testing.assert_close(own(tokens), theirs(tokens, tokens, tokens)[0], rtol=1e-5, atol=1e-6)


def test_a_kolmogorov_arnold_transformer_with_frozen_activations_is_the_plain_one():
    """The two networks would differ in more than their activations."""
    plain = VisionTransformer((1, 8, 8), 10, width=16, depth=2, generator=seeded())
    model = KolmogorovArnoldTransformer((1, 8, 8), 10, width=16, depth=2, init="gelu", generator=seeded(1))
    state = plain.state_dict()
    names = {"mlp.0.linear": "mlp.0", "mlp.1.linear": "mlp.2"}
    for name, tensor in model.state_dict().items():
        for own, theirs in names.items():
            name = name.replace(own, theirs)
        if "activation" not in name:
            assert state.pop(name).shape == tensor.shape
    assert not state
    renamed = {
        name.replace("mlp.2.", "mlp.1.linear.").replace("mlp.0.", "mlp.0.linear."): tensor
        for name, tensor in plain.state_dict().items()
    }
    assert all("activation" in name for name in model.load_state_dict(renamed, strict=False).missing_keys)
    images = 0.5 * torch.randn(6, 1, 8, 8, generator=seeded(2))
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=2e-2)  # the fit of GELU is off by 0.003


def test_parameters():
    """The comparison would not be at equal size: 76 more per block."""
    count = {
        kind: sum(p.numel() for p in kind((1, 8, 8), 10, width=32, depth=3).parameters())
        for kind in (VisionTransformer, KolmogorovArnoldTransformer)
    }
    assert count[KolmogorovArnoldTransformer] - count[VisionTransformer] == 3 * 76


@pytest.mark.parametrize("kind", [VisionTransformer, KolmogorovArnoldTransformer])
def test_learns_digits(kind):
    """The network would not train."""
    data = digits(generator=seeded())
    model = kind(data.input_shape, data.outputs, width=16, depth=1, heads=2, patch=4, generator=seeded())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for epoch in range(6):
        for batch in torch.randperm(1000, generator=seeded(epoch)).split(100):
            loss = F.cross_entropy(model(data.train.inputs[batch]), data.train.targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        assert (model(data.test.inputs).argmax(1) == data.test.targets).float().mean() > 0.75


@pytest.mark.parametrize("kind", [VisionTransformer, KolmogorovArnoldTransformer])
def test_the_generator_decides_the_weights(kind):
    """Runs would not be reproducible, or draw from the global generator."""
    before = torch.get_rng_state()
    first, second, other = (kind((1, 4, 4), 2, width=8, depth=1, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    states = [torch.nn.utils.parameters_to_vector(m.parameters()) for m in (first, second, other)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((64,), {}, "image"),
        ((1, 8, 8), {"patch": 3}, "patches of 3"),
        ((1, 8, 8), {"width": 30}, "4 heads the width 30"),
        ((1, 8, 8), {"width": 20}, "8 groups of 20 channels"),
    ],
)
def test_bad_sizes(shape, options, message):
    """A wrong size would end in an error that says nothing."""
    with pytest.raises(InvalidInput, match=message):
        KolmogorovArnoldTransformer(shape, 10, **options)
