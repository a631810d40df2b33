"""On which small network for 8 x 8 digits each learning rule is tried: probes, command line and benchmarks read it.

A new rule needs a line here; a test fails until it has one. Rules and models are names as `assay train` takes them.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEEP", "SETTINGS", "Deep"]

MLP = "mlp(width=12, depth=2)"
CNN = "cnn(channels=(4, 6))"

# Rule -> model. Several lines where a rule has several kinds of phases, predictions or networks.
SETTINGS: dict[str, str] = {
    "backprop": MLP,
    "mono-forward": MLP,
    "mono-forward(schedule='sequential', readout='sum', project_input=True)": CNN,
    "forward-forward": MLP,
    "cascaded-forward": CNN,
    "cascaded-forward(features='dfa')": MLP,
    "no-prop": "no-prop-net(blocks=3, width=12)",
    "no-prop(order='epoch')": "no-prop-net(blocks=2, width=12, encoder='conv', channels=(4, 6))",
    "no-prop(kind='ct', inference_steps=10)": "no-prop-net(blocks=None, width=12)",
    "no-prop(kind='fm', inference_steps=10)": "no-prop-net(blocks=None, width=12)",
    "target-projection": "mlp(width=12, depth=2, activation='tanh')",
    "target-projection(order='greedy', local_loss='l1')": CNN,
    "target-projection(scale=0.5)": "row-rnn(width=12)",
    "direct-random-target-projection": MLP,
    "direct-feedback-alignment": CNN,
    "counter-current": "mlp(width=12, depth=2, activation='elu')",
    "counter-current(match='normalized', train_feedback=False)": CNN,
    "equilibrium-propagation(steps=8)": "relaxation-net(width=8, depth=1, steps=12)",
    "equilibrium-propagation(steps=8, points=4, homeostasis=0.1)": "relaxation-cnn(channels=(4,), steps=12)",
    "physical-forward": "physical-network(width=12, depth=2)",
    "physical-forward(inner=1, embed='prepend')": "physical-network(width=12, depth=1, label_slots=True)",
    "gradient-boosting(step_units=6)": "mlp(width=12, depth=2)",
}


class Deep(NamedTuple):
    """A rule on a network of any depth, and backpropagation on the same one.

    Args:
        rule: The rule's name and arguments, with {depth} if it needs it.
        network: The network's, with {depth} and {width}.
        baseline: The network that backpropagation trains, if it is not the same.
    """

    rule: str
    network: str = "mlp(width={width}, depth={depth})"
    baseline: str | None = None


# What cost and memory are measured on; a rule that stores no activations across blocks must be flat in depth.
DEEP: dict[str, Deep] = {
    "mono-forward": Deep("mono-forward"),
    "mono-forward, block after block": Deep("mono-forward(schedule='sequential')"),
    "forward-forward": Deep("forward-forward"),
    "cascaded-forward": Deep("cascaded-forward"),
    "cascaded-forward, feedback alignment": Deep("cascaded-forward(features='dfa')"),
    "target-projection": Deep("target-projection"),
    "direct-random-target-projection": Deep("direct-random-target-projection"),
    "direct-feedback-alignment": Deep("direct-feedback-alignment"),
    "counter-current": Deep("counter-current"),
    "no-prop": Deep(
        "no-prop", "no-prop-net(blocks={depth}, width={width})", "no-prop-chain(blocks={depth}, width={width})"
    ),
    "no-prop, all blocks": Deep(
        "no-prop(per_batch={depth})",
        "no-prop-net(blocks={depth}, width={width})",
        "no-prop-chain(blocks={depth}, width={width})",
    ),
    "physical-forward": Deep(
        "physical-forward",
        "physical-network(width={width}, depth={depth})",
        "physical-network(width={width}, depth={depth}, mode='ideal')",
    ),
    # A relaxation takes some hundred passes; backpropagation goes through all of them, so the network is narrower.
    "equilibrium-propagation": Deep("equilibrium-propagation", "relaxation-net(width=64, depth={depth})"),
    "gradient-boosting": Deep("gradient-boosting(step_units=8)"),
}
