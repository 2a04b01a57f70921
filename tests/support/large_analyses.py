"""Saved analyses of large checkpoints, made of random numbers, one group at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ders_core.analysis import Analysis
from ders_core.analysis.group_table import Key
from ders_core.analysis.similarity import BINS
from ders_core.analysis.tables import COLUMNS
from ders_core.checkpoint import Checkpoint, ExpertGroup


class _Drawn:
    """A table whose rows are made when they are asked for."""

    def __init__(self, table: str, groups: Sequence[ExpertGroup]) -> None:
        self.columns = COLUMNS[table]
        self._groups = {group.key: group for group in groups}

    @property
    def empty(self) -> bool:
        return not self._groups

    @property
    def keys(self) -> Sequence[Key]:
        return list(self._groups)


class DrawnPairs(_Drawn):
    """The pairs of every group."""

    def __init__(self, groups: Sequence[ExpertGroup]) -> None:
        super().__init__("similarity", groups)

    def of_group(
        self, layer: int, projection: str, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        count = self._groups[layer, projection].shape[0]
        experts = np.arange(count)
        apart = np.random.default_rng(layer).uniform(1e-4, 1e-3, (count, count))
        apart = (apart + apart.T) / 2
        np.fill_diagonal(apart, 0)
        rows = {
            "layer": layer,
            "projection": projection,
            "expert_i": np.repeat(experts, count),
            "expert_j": np.tile(experts, count),
            "one_minus_cos": apart.reshape(-1),
            "cos_delta": 1 - 1000 * apart.reshape(-1),
        }
        return pd.DataFrame(rows)[list(columns or self.columns)]


class DrawnSpectra(_Drawn):
    """`points` singular values of every expert."""

    def __init__(self, groups: Sequence[ExpertGroup], points: int) -> None:
        super().__init__("spectra", groups)
        self._points = points

    def of_group(
        self, layer: int, projection: str, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        count = self._groups[layer, projection].shape[0]
        index = np.arange(1, self._points + 1)
        sigma = np.random.default_rng(layer).uniform(0.9, 1.1, (count, 1)) / index
        energy = np.cumsum(sigma**2, 1)
        rows = {
            "layer": layer,
            "projection": projection,
            "expert": np.repeat(np.arange(count), self._points),
            "index": np.tile(index, count),
            "singular_value": sigma.reshape(-1),
            "energy": (energy / energy[:, -1:]).reshape(-1),
        }
        return pd.DataFrame(rows)[list(columns or self.columns)]


def save_drawn_analysis(directory: Path, checkpoint: Checkpoint, points: int) -> None:
    """Save an analysis that is one of the checkpoint as its files are now."""
    groups = checkpoint.groups()
    random = np.random.default_rng(0)
    keys = [{"layer": group.layer, "projection": group.projection} for group in groups]
    of_groups = [
        {
            **key,
            **dict(zip(("experts", "out", "in"), group.shape, strict=True)),
            **{"norm_base": 1.0, "mean_norm_delta": 0.1, "norm_ratio": random.uniform(0.05, 0.2)},
            **{"mean_one_minus_cos": 5e-4, "max_one_minus_cos": 1e-3, "mean_cos_delta": 0.0},
            **{"clusters": 1, "cluster_gain": 1.0},
        }
        for key, group in zip(keys, groups, strict=True)
    ]
    experts = [
        pd.DataFrame(
            {
                **key,
                "expert": np.arange(group.shape[0]),
                **dict.fromkeys(("norm", "norm_delta", "std", "max_abs"), 0.1),
                **dict.fromkeys(("mean", "kurtosis"), 0.0),
                **{"effective_rank": 3.0, "stable_rank": 2.0, "cluster": 0},
            }
        )
        for key, group in zip(keys, groups, strict=True)
    ]
    edges = np.linspace(-1, 1, BINS + 1)
    bins = {"left": edges[:-1], "right": edges[1:], "count": np.arange(1, BINS + 1)}
    axes = {"axis": ["row", "row", "column", "column"], "bin": [0, 1, 0, 1], "energy": 0.5}
    Analysis(
        checkpoint.identity,
        checkpoint.family,
        {"name": "large", "layers": checkpoint.moe_layers, "dtype": "BF16", "spectra": "curve"},
        groups=pd.DataFrame(of_groups),
        pairs=DrawnPairs(groups),
        experts=_together("experts", experts),
        curves=DrawnSpectra(groups, points),
        histograms=_together("histograms", [pd.DataFrame({**key, **bins}) for key in keys]),
        energy_map=_together("energy_map", [pd.DataFrame({**key, **axes}) for key in keys]),
        version=checkpoint.store.version,
    ).save(directory)


def _together(name: str, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)[list(COLUMNS[name])]
