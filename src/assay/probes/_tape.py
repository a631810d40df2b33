"""Record what a linear map does to tensors, once, and play it back for other arguments.

A curvature product differentiates a network twice. Most operations in it do not depend on the vector: the network's
own forward and backward pass. Run once under a `Tape`, only those that do are kept, as a `torch.fx` graph with their
constant arguments; playing it needs no autograd graph, no derivative formula and no activation that is not used.

Tensors are recognised by where their elements lie (storage, offset, sizes, strides), since autograd hands out new
objects for old memory. An operation that writes into a constant is refused. Whoever records must compare one play with
the truth, as `assay.probes._linearised` does: a tape that depends on more than its inputs is then not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["Tape"]

_aten = torch.ops.aten


class Tape(TorchDispatchMode):
    """Records while it is entered; `close` then gives the map.

    Args:
        inputs: What the recorded operations are linear in.

    Attributes:
        largest: Elements of the largest recorded tensor.

    Example:
        >>> import torch
        >>> a, x = torch.tensor([2.0, 3.0]), torch.ones(2)
        >>> with (tape := Tape([x])):
        ...     y = x * (a * a)
        >>> tape.close([y])(torch.tensor([1.0, 10.0]))
        (tensor([ 4., 90.]),)
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.largest = 1
        self._graph = Graph()
        self._known: dict[Any, Node] = {}
        self._alive: list[Tensor] = []  # the memory of a recorded tensor must not be given to another
        self._zeros: set[Node] = set()
        self._constants: dict[Any, tuple[Node, Tensor]] = {}
        for index, tensor in enumerate(inputs):
            self._remember(tensor, self._graph.placeholder(f"input_{index}"))
        self._last_placeholder = self._graph.placeholder("unused")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and keep it if it depends on the inputs."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not any(self._find(t) for t in _tensors((*args, *kwargs.values()))) or not _tensors((out,)):
            return out
        if func is _aten.add.Tensor and self._adds_zero(args, kwargs, out):
            return out
        if func._schema.is_mutable:
            self._refuse_written_constants(func, args)
            self._zeros.clear()
        node = self._graph.call_function(func, *tree_map_only(Tensor, self._node, (args, kwargs)))
        if isinstance(out, Tensor):
            self._remember(out, node)
        else:
            for index, part in enumerate(out):
                if isinstance(part, Tensor):
                    self._remember(part, self._graph.call_function(_item, (node, index)))
        if func is _aten.zeros_like.default:
            self._zeros.add(node)
        return out

    def close(self, outputs: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        """Return the map from inputs to these outputs, each of which must be recorded."""
        self._graph.output(tuple(self._known[_place(t)] for t in outputs))
        self._graph.eliminate_dead_code()
        constants = [(node, value) for node, value in self._constants.values() if node.users]
        for node, _ in self._constants.values():
            if not node.users:
                self._graph.erase_node(node)
        self._graph.erase_node(self._last_placeholder)
        self._known, self._alive, self._constants = {}, [], {}
        forward = GraphModule(torch.nn.Module(), self._graph).forward
        values = [value for _, value in constants]
        return lambda *inputs: forward(*inputs, *values)

    def _find(self, tensor: Tensor) -> Node | None:
        return self._known.get(_place(tensor))

    def _remember(self, tensor: Tensor, node: Node) -> None:
        self._known[_place(tensor)] = node
        self._alive.append(tensor)
        self.largest = max(self.largest, tensor.numel())

    def _node(self, tensor: Tensor) -> Node:
        """Return the node of a recorded tensor, or a new input of the graph for a constant."""
        if (node := self._find(tensor)) is not None:
            return node
        if (place := _place(tensor)) not in self._constants:
            with self._graph.inserting_before(self._last_placeholder):
                node = self._graph.placeholder(f"constant_{len(self._constants)}")
            self._constants[place] = (node, tensor)
        return self._constants[place][0]

    def _adds_zero(self, args: Any, kwargs: Any, out: Tensor) -> bool:
        """Whether this adds recorded zeros to a tensor of the same kind; the sum is then that tensor."""
        first, second = args
        if kwargs or not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return False
        for zero, other in ((first, second), (second, first)):
            node = self._find(other)
            if self._find(zero) in self._zeros and node and (other.shape, other.dtype) == (out.shape, out.dtype):
                self._remember(out, node)
                return True
        return False

    def _refuse_written_constants(self, func: Any, args: Any) -> None:
        for value, argument in zip(args, func._schema.arguments, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, Tensor) and self._find(value) is None:
                raise NotImplementedError(f"{func} writes into a constant")


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors among values and in the lists among them, the only places where operations have any."""
    parts = [part for v in values for part in (v if isinstance(v, list | tuple) else (v,))]
    return [part for part in parts if isinstance(part, Tensor)]


def _item(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]


def _place(tensor: Tensor) -> Any:
    if tensor.numel() == 0 or tensor._is_zerotensor():
        return id(tensor)
    where = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (*where, tuple(tensor.shape), tensor.stride(), tensor.dtype)
