"""Cora and CiteSeer: papers as nodes, citations as edges, bags of words as features, one topic per paper.

Yang, Cohen, Salakhutdinov, "Revisiting semi-supervised learning with graph embeddings", 2016 (arXiv:1603.08861).
The raw files are read by torch-geometric without writing its `processed` folder. They are pickles, so their checksums
are compared before they are opened.

Shapes: V nodes, E directed edges, d features. A split's inputs (N, d) are the features of its nodes, so that a network
that ignores the edges is trained as on any table; graph networks read `graph`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from assay.data._sources import SOURCES
from assay.data.dataset import Dataset, Split, check_sizes, stratified_split
from assay.data.files import obtain
from assay.errors import InvalidInput, MissingData, MissingExtra

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["GraphDataset", "citeseer", "cora"]

_NUM_CLASSES = {"cora": 7, "citeseer": 6}


@dataclass(frozen=True)
class GraphDataset(Dataset):
    """Nodes of one graph as a data set.

    Args:
        graph: A `torch_geometric.data.Data` with x (V, d), edge_index (2, E), y (V,), and boolean train_mask,
            val_mask and test_mask (V,) that select the nodes of the splits.
    """

    graph: Data | None = None

    def to(self, device: torch.device | str) -> Self:
        """Return the data set, its graph included, on a device."""
        moved = super().to(device)
        return moved if self.graph is None else replace(moved, graph=self.graph.clone().to(device))


def cora(
    *,
    train_per_class: int = 20,
    validation: int = 500,
    test: int = 1000,
    row_normalize: bool = True,
    generator: torch.Generator | None = None,
) -> GraphDataset:
    """2,708 papers on machine learning, 5,278 citations, 1,433 words, 7 topics.

    Args:
        train_per_class: Labelled nodes of each topic.
        validation: Nodes for validation.
        test: Nodes for testing.
        row_normalize: Divide each node's features by their sum, as is usual for this graph.
        generator: Draws the split: `train_per_class` nodes of each topic, then validation and test nodes among the
            rest. None is the public split (20 per topic, 500, 1,000), which has no other sizes.

    Raises:
        InvalidInput: If sizes other than the public ones are asked for without a generator, or nodes do not suffice.
        MissingData: If the files are nowhere and cannot be downloaded.
        MissingExtra: If torch-geometric is not installed.
    """
    return _graph_dataset("Cora", (train_per_class, validation, test), row_normalize, generator)


def citeseer(
    *,
    train_per_class: int = 20,
    validation: int = 500,
    test: int = 1000,
    row_normalize: bool = True,
    generator: torch.Generator | None = None,
) -> GraphDataset:
    """3,327 papers on computer science, 4,552 citations, 3,703 words, 6 topics.

    Args:
        train_per_class: Labelled nodes of each topic.
        validation: Nodes for validation.
        test: Nodes for testing.
        row_normalize: Divide each node's features by their sum, as is usual for this graph.
        generator: Draws the split as for `cora`; None is the public split.

    Raises:
        InvalidInput: If sizes other than the public ones are asked for without a generator, or nodes do not suffice.
        MissingData: If the files are nowhere and cannot be downloaded.
        MissingExtra: If torch-geometric is not installed.
    """
    return _graph_dataset("CiteSeer", (train_per_class, validation, test), row_normalize, generator)


@cache
def _read(folder: Path, name: str) -> Data:
    from torch_geometric.io import read_planetoid_data

    return read_planetoid_data(str(folder), name)


def _raw_folder(name: str) -> Path:
    paths = [obtain(name.lower(), file.path, verify=True) for file in SOURCES[name.lower()].files]
    folders = sorted({str(path.parent) for path in paths})
    if len(folders) > 1:
        raise MissingData(f"the files of {name} lie in several folders ({', '.join(folders)}); put them into one")
    return paths[0].parent


def _graph_dataset(
    name: str, sizes: tuple[int, int, int], row_normalize: bool, generator: torch.Generator | None
) -> GraphDataset:
    try:
        import torch_geometric  # noqa: F401 - only to say clearly that it is missing
    except ImportError as error:
        raise MissingExtra(f"{name} needs torch-geometric: pip install 'assay[graph]'") from error
    graph = _read(_raw_folder(name), name.lower()).clone()
    if row_normalize:
        graph.x = graph.x / graph.x.sum(dim=1, keepdim=True).clamp(min=1.0)
    if generator is not None:
        _draw_masks(graph, sizes, generator)
    elif sizes != (20, 500, 1000):
        raise InvalidInput(
            f"{name}'s public split has sizes (20, 500, 1000), got {sizes}; give a generator to draw one"
        )
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    train, held_out, final = (Split(graph.x[mask], graph.y[mask]) for mask in masks)
    return GraphDataset(name.lower(), train, held_out, final, _NUM_CLASSES[name.lower()], graph)


def _draw_masks(graph: Data, sizes: tuple[int, int, int], generator: torch.Generator) -> None:
    """Replace the masks: so many nodes of every class for training, then a plain random draw."""
    per_class, validation, test = sizes
    check_sizes([per_class], int(torch.bincount(graph.y).min()))
    shuffled = torch.randperm(len(graph.y), generator=generator)
    order = shuffled[torch.argsort(graph.y[shuffled], stable=True)]
    first = torch.cumsum(torch.bincount(graph.y), 0) - torch.bincount(graph.y)
    rank = torch.arange(len(order)) - first[graph.y[order]]
    train, rest = order[rank < per_class], order[rank >= per_class]
    drawn = stratified_split(torch.zeros(len(rest), dtype=torch.long), (validation, test), generator)
    graph.train_mask, graph.val_mask, graph.test_mask = (
        _mask(nodes, len(order)) for nodes in (train, rest[drawn[0]], rest[drawn[1]])
    )


def _mask(nodes: Tensor, total: int) -> Tensor:
    return torch.zeros(total, dtype=torch.bool).index_fill(0, nodes, True)
