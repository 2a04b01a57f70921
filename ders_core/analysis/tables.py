"""`Analysis`: the results for a checkpoint, as plain tables that can be saved and loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ders_core.analysis.origins import (
    Starts,
    clusters_sentence,
    common_starts,
    find_clusters,
    starts_of,
)
from ders_core.analysis.saved import check_clusters, check_together, read_head, read_table
from ders_core.analysis.verdict import SINGLE, Verdict, judge
from ders_core.files.directory import replaced_directory
from ders_core.files.spec import DTYPES
from ders_core.files.store import Store

VERSION = 2
WITHOUT_CLUSTERS = 1
"""Tables of this version lack the clusters, which follow from the other columns."""
OF_CLUSTERS = ("clusters", "cluster_gain", "cluster")
"""The columns that they lack."""
META = "meta.json"

COLUMNS: dict[str, tuple[str, ...]] = {
    "groups": (
        *("layer", "projection", "experts", "out", "in", "norm_base", "mean_norm_delta"),
        *("norm_ratio", "mean_one_minus_cos", "max_one_minus_cos", "mean_cos_delta"),
        *("clusters", "cluster_gain"),
    ),
    "similarity": ("layer", "projection", "expert_i", "expert_j", "one_minus_cos", "cos_delta"),
    "experts": (
        *("layer", "projection", "expert", "norm", "norm_delta", "mean", "std", "kurtosis"),
        *("max_abs", "effective_rank", "stable_rank", "cluster"),
    ),
    "spectra": ("layer", "projection", "expert", "index", "singular_value", "energy"),
    "histograms": ("layer", "projection", "left", "right", "count"),
    "energy_map": ("layer", "projection", "axis", "bin", "energy"),
}


@dataclass(frozen=True)
class Analysis:
    """Tidy tables, one row a fact; COLUMNS names them. Deltas are against the experts' mean.

    norm_ratio: mean ‖Δ_i‖ / ‖W_base‖. clusters: how many bases pay best; cluster_gain: the share of
    one base's ΣΔ² that these leave; cluster: that of an expert, from 0 on. energy in `spectra`:
    cumulative share of Σσ²; in `energy_map`: share of ΣΔ² in a bin of rows or columns.

    identity: of the checkpoint, by a sample. version: of the files that were read, see
    `Store.version`; "" in tables of before there was one. An analysis is of that version alone.
    """

    identity: str
    family: str
    meta: dict[str, Any]
    groups: pd.DataFrame
    similarity: pd.DataFrame
    experts: pd.DataFrame
    spectra: pd.DataFrame
    histograms: pd.DataFrame
    energy_map: pd.DataFrame
    version: str = ""

    def is_of(self, store: Store) -> bool:
        """Whether it was made of the files as they are in this store."""
        return (self.identity, self.version) == (store.identity, store.version)

    @cached_property
    def verdict(self) -> Verdict:
        """From every pair of every group."""
        compared = self.groups[self.groups["experts"] > 1]
        if compared.empty:
            return SINGLE
        mean = float(compared["mean_one_minus_cos"].mean())
        return judge(1.0 - mean, self._starts())

    def _starts(self) -> Starts | None:
        """Those of the model; None where one base is best."""
        several = self.groups[self.groups["clusters"] > 1]
        if several.empty:
            return None
        pairs = self.similarity.groupby(["layer", "projection"])
        of_groups = [
            starts_of(square(pairs.get_group(key), "one_minus_cos"), self.clusters_of(*key))
            for key in zip(several["layer"], several["projection"], strict=True)
        ]
        compared = int((self.groups["experts"] > 1).sum())
        return common_starts([*of_groups, *[None] * (compared - len(several))])

    def clusters_of(self, layer: int, projection: str) -> list[int]:
        """The cluster of each expert of a group."""
        clusters: list[int] = of_group(self.experts, layer, projection)["cluster"].tolist()
        return clusters

    def about_clusters(self, layer: int, projection: str) -> str:
        """One sentence: the experts that share a base, and what several bases would leave."""
        gain = float(of_group(self.groups, layer, projection)["cluster_gain"].iloc[0])
        return clusters_sentence(self.clusters_of(layer, projection), gain)

    def group_keys(self) -> list[tuple[int, str]]:
        """(layer, projection) of every group, in the order of the tables."""
        layers, projections = self.groups["layer"].tolist(), self.groups["projection"].tolist()
        return list(zip(layers, projections, strict=True))

    def rows_of(self, layer: int, projection: str) -> dict[str, list[dict[str, Any]]]:
        """The rows of one group in each table."""
        tables = {name: of_group(getattr(self, name), layer, projection) for name in COLUMNS}
        return {
            name: [
                {str(key): value for key, value in row.items()} for row in table.to_dict("records")
            ]
            for name, table in tables.items()
        }

    @property
    def missing_layers(self) -> int:
        """How many layers are still to be analysed."""
        return len(set(self.meta["layers"]) - set(self.groups["layer"]))

    def save(self, directory: Path) -> None:
        """Write the tables as Parquet next to meta.json; the directory appears when complete."""
        with replaced_directory(directory) as aside:
            for name in COLUMNS:
                getattr(self, name).to_parquet(aside / f"{name}.parquet", index=False)
            (aside / META).write_text(json.dumps(self._head(), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Analysis:
        """Tables of version 1 get their clusters.

        Raises CheckpointError if the tables are not there, are damaged, or were written by another
        version.
        """
        head = read_head(directory / META, (VERSION, WITHOUT_CLUSTERS))
        is_old = head.version == WITHOUT_CLUSTERS
        tables = {
            name: read_table(
                directory / f"{name}.parquet",
                [column for column in columns if not (is_old and column in OF_CLUSTERS)],
            )
            for name, columns in COLUMNS.items()
        }
        check_together(directory, tables)
        if is_old:
            _add_clusters(tables, head.meta["dtype"])
        check_clusters(directory, tables)
        return cls(head.identity, head.family, head.meta, **tables, version=head.files)

    def to_json(self) -> str:
        """Everything as one JSON text: each table as a list of records."""
        tables = {
            name: json.loads(getattr(self, name).to_json(orient="records")) for name in COLUMNS
        }
        verdict = self.verdict
        return json.dumps(
            {
                **self._head(),
                "verdict": verdict.verdict,
                "mean_cosine": verdict.mean_cosine,
                "starts": asdict(verdict.starts) if verdict.starts else None,
                **tables,
            },
            ensure_ascii=False,
        )

    def _head(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "identity": self.identity,
            "files": self.version,
            "family": self.family,
            "meta": self.meta,
        }


def of_group(table: pd.DataFrame, layer: int, projection: str) -> pd.DataFrame:
    """The rows of one group."""
    chosen: pd.DataFrame = table[(table["layer"] == layer) & (table["projection"] == projection)]
    return chosen


def square(pairs: pd.DataFrame, column: str) -> np.ndarray:
    """A column of the similarities of one group as `[K, K]`."""
    table: np.ndarray = pairs.pivot(index="expert_i", columns="expert_j", values=column).to_numpy()
    return table


def _add_clusters(tables: dict[str, pd.DataFrame], dtype: str) -> None:
    """Give tables of version 1 the columns of clusters, in place. dtype: the weights', by name."""
    groups, experts = tables["groups"], tables["experts"]
    bits = 8 * DTYPES[dtype].itemsize
    experts["cluster"] = 0
    counts, gains = [], []
    pairs = tables["similarity"].groupby(["layer", "projection"])
    for key in zip(groups["layer"], groups["projection"], strict=True):
        rows = of_group(experts, *key)
        cosines = square(pairs.get_group(key), "cos_delta")
        clusters = find_clusters(cosines, rows["norm_delta"].to_numpy(), bits)
        experts.loc[rows.index, "cluster"] = clusters.assignment
        counts.append(clusters.count)
        gains.append(clusters.gain)
    tables["groups"] = groups.assign(clusters=counts, cluster_gain=gains)
