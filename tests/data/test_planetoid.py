"""Cora and CiteSeer: known counts, the public split, drawn splits, and nothing written beside the raw files."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.data.planetoid import GraphDataset, citeseer, cora
from assay.errors import InvalidInput, MissingData, MissingExtra

KNOWN = [(cora, 2708, 5278, 1433, 7), (citeseer, 3327, 4552, 3703, 6)]


@pytest.fixture
def planetoid(real_data: Path) -> Path:
    """The folder with the raw files of Cora and CiteSeer."""
    pytest.importorskip("torch_geometric", reason="needs the extra graph")
    if not (real_data / "planetoid").is_dir():
        pytest.skip("needs the folder planetoid")
    return real_data / "planetoid"


@pytest.mark.parametrize(("load", "nodes", "edges", "features", "classes"), KNOWN)
def test_graph_has_its_known_size(
    planetoid, load: Callable[..., GraphDataset], nodes: int, edges: int, features: int, classes: int
) -> None:
    """Isolated nodes would be lost, or edges counted twice."""
    data = load()
    assert data.graph is not None
    assert data.graph.x.shape == (nodes, features) and data.graph.edge_index.shape == (2, 2 * edges)
    assert (data.input_shape, data.num_classes) == ((features,), classes)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20 * classes, 500, 1000]


def test_splits_are_the_rows_that_the_masks_select(planetoid) -> None:
    """A network on the graph and one on the table would be tested on different nodes."""
    data = cora(row_normalize=False)
    assert data.graph is not None
    for split, mask in ((data.train, "train_mask"), (data.validation, "val_mask"), (data.test, "test_mask")):
        assert torch.equal(split.inputs, data.graph.x[data.graph[mask]])
        assert torch.equal(split.targets, data.graph.y[data.graph[mask]])


def test_public_training_nodes_match_the_raw_files(planetoid) -> None:
    """Features would be paired with other nodes' labels."""
    raw = planetoid / "Cora" / "raw"
    features, labels = (pickle.loads((raw / f"ind.cora.{end}").read_bytes(), encoding="latin1") for end in ("x", "y"))
    data = cora(row_normalize=False)
    np.testing.assert_array_equal(data.train.inputs.numpy(), features.toarray())
    np.testing.assert_array_equal(data.train.targets.numpy(), labels.argmax(1))


def test_moving_takes_the_graph_along(planetoid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features would be on one device and edges on another."""
    from torch_geometric.data import Data

    data, asked = cora(), []
    monkeypatch.setattr(Data, "to", lambda self, device: asked.append(device) or self)
    assert isinstance(data.to("cpu"), GraphDataset) and asked == ["cpu"]


def test_rows_sum_to_one(planetoid) -> None:
    """Long documents would weigh more, and papers without words would be NaN."""
    graph = citeseer().graph
    assert graph is not None
    totals = graph.x.sum(1)
    assert torch.all(((totals - 1).abs() < 1e-4) | (totals == 0)) and (totals == 0).sum() == 15


def test_drawn_split_is_disjoint_with_so_many_nodes_per_class(planetoid) -> None:
    """Seeds would share a split, or a class would have fewer labels."""
    draw = [
        cora(train_per_class=7, validation=100, test=200, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.bincount(draw[0].train.targets).tolist() == [7] * 7
    graphs = [data.graph for data in draw]
    assert all(graph is not None for graph in graphs)
    masks = torch.stack([graphs[0].train_mask, graphs[0].val_mask, graphs[0].test_mask])
    assert masks.sum(0).max() == 1 and masks.sum(1).tolist() == [49, 100, 200]
    assert torch.equal(graphs[0].test_mask, graphs[1].test_mask)
    assert not torch.equal(graphs[0].test_mask, graphs[2].test_mask)


def test_public_split_has_one_size_and_drawn_ones_need_enough_nodes(planetoid) -> None:
    """A wish for another size would be ignored."""
    with pytest.raises(InvalidInput, match="public split"):
        cora(test=500)
    with pytest.raises(InvalidInput, match="sample"):
        cora(train_per_class=1000, generator=torch.Generator())
    with pytest.raises(InvalidInput, match="sample"):
        cora(test=2700, generator=torch.Generator())


def test_nothing_is_written(planetoid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `processed` folder would appear in the user's read-only data."""
    shutil.copytree(planetoid, tmp_path / "given" / "planetoid")
    monkeypatch.setenv("ASSAY_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted(tmp_path.rglob("*"))
    cora()
    assert sorted(tmp_path.rglob("*")) == before


def test_changed_pickle_is_not_opened(planetoid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle from elsewhere would run its code."""
    shutil.copytree(planetoid / "Cora", tmp_path / "planetoid" / "Cora")
    monkeypatch.setenv("ASSAY_DATA", str(tmp_path))
    changed = tmp_path / "planetoid" / "Cora" / "raw" / "ind.cora.x"
    changed.chmod(0o644)
    changed.write_bytes(pickle.dumps("something else"))
    with pytest.raises(MissingData, match=r"ind\.cora\.x is not the publisher's file"):
        cora()


def test_missing_files_and_missing_extra_are_clear(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would see a traceback instead of what to install or where to put the files."""
    pytest.importorskip("torch_geometric", reason="needs the extra graph")
    with pytest.raises(MissingData, match=r"planetoid/Cora/raw/ind\.cora\.x"):
        cora()
    monkeypatch.setitem(__import__("sys").modules, "torch_geometric", None)
    with pytest.raises(MissingExtra, match=r"assay\[graph\]"):
        cora()
