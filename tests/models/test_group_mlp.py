import pytest
import torch
import torch.nn.functional as F

from assay.errors import InvalidInput
from assay.models.group_mlp import GroupMLP


def model(activation="square", operands=2, seed=0):
    """A small network modulo 5 in float64."""
    return GroupMLP((operands * 5,), 5, 8, activation, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(
    ("activation", "sigma"),
    [
        ("square", lambda z: z * z),
        ("relu", lambda z: z.clamp(min=0)),
        ("silu", lambda z: z / (1 + torch.exp(-z))),
        ("relu-square", lambda z: z.clamp(min=0) ** 2),
    ],
)
@pytest.mark.parametrize("operands", [1, 2, 3])
def test_scores_are_those_of_the_formula(activation, sigma, operands):
    """The activation is another, an operand reads another's weights, or indices and one-hot inputs differ."""
    network = model(activation, operands)
    indices = torch.cartesian_prod(*[torch.arange(5)] * operands).reshape(-1, operands)
    x = F.one_hot(indices, 5).flatten(1).double()
    expected = sigma(x @ network.hidden.weight.T) @ network.head.weight.T
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network(indices), expected)


def test_gradients_agree_between_the_two_kinds_of_input():
    """Training on indices would be another training than on one-hot inputs."""
    pairs = torch.tensor([[0, 3], [4, 4], [0, 1]])
    gradients = []
    for x in (pairs, F.one_hot(pairs, 5).flatten(1).double()):
        network = model()
        F.cross_entropy(network(x), torch.tensor([3, 3, 1])).backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_generator_decides_the_weights():
    """Initial weights come from the global generator."""
    first, again, other = (model(seed=s).hidden.weight for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("arguments", [((11,), 5), ((10,), 0), ((10,), 5, 0), ((10,), 5, 4, "cube")])
def test_bad_sizes_and_activations_are_refused(arguments):
    """A network that cannot take the operands is built."""
    with pytest.raises(InvalidInput):
        GroupMLP(*arguments)
