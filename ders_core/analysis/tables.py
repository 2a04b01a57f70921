"""`Analysis`: the results for a checkpoint, as plain tables that can be saved and loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ders_core.analysis.expert_tree import ExpertTree, expert_tree
from ders_core.analysis.group_table import (
    GroupTable,
    Key,
    TableInFile,
    TableInMemory,
    whole,
    write_groups,
    write_table,
)
from ders_core.analysis.origins import (
    Starts,
    clusters_sentence,
    common_starts,
    find_clusters,
    starts_of,
)
from ders_core.analysis.parquet_rows import ParquetRows
from ders_core.analysis.saved import (
    check_clusters,
    check_experts,
    check_groups,
    check_keys,
    check_pairs,
    count_pairs,
    count_spectra,
    read_head,
    read_table,
)
from ders_core.analysis.saving import SharedEnergy, saving
from ders_core.analysis.verdict import SINGLE, Verdict, judge
from ders_core.analysis.written_note import PairFigures, read_note, withdraw_note, write_note
from ders_core.files.directory import replaced_directory
from ders_core.files.dtype import Dtype
from ders_core.files.store import Store
from ders_core.later import np, pd

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
SMALL = ("groups", "experts", "histograms", "energy_map")
"""Tables that are in memory as a whole: their rows do not grow with the pairs of experts."""


@dataclass(frozen=True)
class Analysis:
    """Tidy tables, one row a fact; COLUMNS names them. Deltas are against the experts' mean.

    norm_ratio: mean ‖Δ_i‖ / ‖W_base‖. clusters: how many bases pay best; cluster_gain: the share of
    one base's ΣΔ² that these leave; cluster: that of an expert, from 0 on. energy in `spectra`:
    cumulative share of Σσ²; in `energy_map`: share of ΣΔ² in a bin of rows or columns.

    pairs, curves: the tables `similarity` and `spectra`, group by group; of a saved analysis they
    are read when they are asked for.

    identity: of the checkpoint, by a sample. version: of the files that were read, see
    `Store.version`; "" in tables of before there was one. An analysis is of that version alone.
    figures: of all pairs, as they were saved; without them they are computed when they are asked
    for.
    """

    identity: str
    family: str
    meta: dict[str, Any]
    groups: pd.DataFrame
    pairs: GroupTable
    experts: pd.DataFrame
    curves: GroupTable
    histograms: pd.DataFrame
    energy_map: pd.DataFrame
    version: str = ""
    figures: PairFigures | None = None

    def is_of(self, store: Store) -> bool:
        """Whether it was made of the files as they are in this store."""
        return (self.identity, self.version) == (store.identity, store.version)

    @property
    def similarity(self) -> pd.DataFrame:
        """The whole table, which can be larger than memory: pages take `pairs`."""
        return whole(self.pairs)

    @property
    def spectra(self) -> pd.DataFrame:
        """The whole table, which can be larger than memory: pages take `curves`."""
        return whole(self.curves)

    @cached_property
    def apart(self) -> tuple[float, float] | None:
        """The least and the largest 1 − cos of two experts of a group; None without any."""
        if self.figures is not None:
            return self.figures.apart
        extremes = []
        for key in self.pairs.keys:
            values = self.apart_in(*key)
            if len(values) > 1:
                others = values.copy()
                np.fill_diagonal(others, values[0, 1])
                extremes.append((float(others.min()), float(others.max())))
        if not extremes:
            return None
        return min(low for low, _ in extremes), max(high for _, high in extremes)

    @cached_property
    def verdict(self) -> Verdict:
        """From every pair of every group."""
        compared = self.groups[self.groups["experts"] > 1]
        if compared.empty:
            return SINGLE
        mean = float(compared["mean_one_minus_cos"].mean())
        return judge(1.0 - mean, self._starts(), saving(self._energies(), sampled=False))

    def _energies(self) -> list[SharedEnergy]:
        """Of each group with several experts, whose weights are not all zeros."""
        bits, energies = 8 * Dtype[self.meta["dtype"]].itemsize, []
        squares = self.experts.assign(
            weight=self.experts["norm"] ** 2, delta=self.experts["norm_delta"] ** 2
        )
        sums = squares.groupby(["layer", "projection"])[["weight", "delta"]].sum()
        for row in self.groups[self.groups["experts"] > 1].to_dict("records"):
            whole, one = sums.loc[(row["layer"], row["projection"])]
            if whole > 0:
                share = float(one / whole)
                several = {int(row["clusters"]): share * float(row["cluster_gain"])}
                values = int(row["experts"]) * int(row["out"]) * int(row["in"])
                of_deltas = several | {1: share}
                energies.append(SharedEnergy(int(row["experts"]), values, bits, of_deltas))
        return energies

    def _starts(self) -> Starts | None:
        """Those of the model; None where one base is best."""
        if self.figures is not None:
            return self.figures.starts
        several = self.groups[self.groups["clusters"] > 1]
        if several.empty:
            return None
        of_groups = [
            starts_of(self.apart_in(*key), self.clusters_of(*key))
            for key in zip(several["layer"], several["projection"], strict=True)
        ]
        compared = int((self.groups["experts"] > 1).sum())
        return common_starts([*of_groups, *[None] * (compared - len(several))])

    def apart_in(self, layer: int, projection: str) -> np.ndarray:
        """1 − cos of the experts of a group, `[K, K]`."""
        rows = self.pairs.of_group(layer, projection, columns=("one_minus_cos",))
        return square(rows, "one_minus_cos")

    def pooled_energy(self, layer: int, projection: str) -> tuple[np.ndarray, np.ndarray]:
        """(index, cumulative share of Σσ² over all experts of the group); empty without spectra."""
        key = layer, projection
        if key not in self._pooled:
            rows = self.curves.of_group(*key, columns=("expert", "index", "energy"))
            norms = self.rows("experts", *key)["norm_delta"].to_numpy()
            self._pooled[key] = _pooled(rows, norms)
        return self._pooled[key]

    @cached_property
    def _pooled(self) -> dict[Key, tuple[np.ndarray, np.ndarray]]:
        return {}

    def clusters_of(self, layer: int, projection: str) -> list[int]:
        """The cluster of each expert of a group."""
        clusters: list[int] = self.rows("experts", layer, projection)["cluster"].tolist()
        return clusters

    def expert_tree(self, layer: int, projection: str) -> ExpertTree:
        """Which experts of a group are most alike; in it those of a cluster stand together."""
        key = layer, projection
        if key not in self._trees:
            self._trees[key] = expert_tree(self.apart_in(*key), self.clusters_of(*key))
        return self._trees[key]

    @cached_property
    def _trees(self) -> dict[Key, ExpertTree]:
        return {}

    def about_clusters(self, layer: int, projection: str) -> str:
        """One sentence: the experts that share a base, and what several bases would leave."""
        gain = float(of_group(self.groups, layer, projection)["cluster_gain"].iloc[0])
        return clusters_sentence(self.clusters_of(layer, projection), gain)

    def group_keys(self) -> list[tuple[int, str]]:
        """(layer, projection) of every group, in the order of the tables."""
        layers, projections = self.groups["layer"].tolist(), self.groups["projection"].tolist()
        return list(zip(layers, projections, strict=True))

    def rows_of(self, layer: int, projection: str) -> dict[str, pd.DataFrame]:
        """The rows of one group in each table, numbered from 0 on."""
        return {name: self.rows(name, layer, projection) for name in COLUMNS}

    def rows(self, table: str, layer: int, projection: str) -> pd.DataFrame:
        """The rows of one group in one table, numbered from 0 on. Finds them in no time, where
        `of_group` looks at every row."""
        if table not in self._by_group:
            self._by_group[table] = TableInMemory.of(getattr(self, table))
        return self._by_group[table].of_group(layer, projection)

    @cached_property
    def _by_group(self) -> dict[str, GroupTable]:
        return {"similarity": self.pairs, "spectra": self.curves}

    @property
    def missing_layers(self) -> int:
        """How many layers are still to be analysed."""
        return len(set(self.meta["layers"]) - set(self.groups["layer"]))

    def save(self, directory: Path) -> None:
        """Write the tables as Parquet next to meta.json; the directory appears when complete."""
        with replaced_directory(directory) as aside:
            for name in SMALL:
                write_table(getattr(self, name), aside / f"{name}.parquet")
            write_groups(self.pairs, aside / "similarity.parquet")
            spectra = write_groups(self.curves, aside / "spectra.parquet")
            (aside / META).write_text(json.dumps(self._head(), indent=2), encoding="utf-8")
            write_note(aside, spectra, PairFigures(self.apart, self._starts()))

    @classmethod
    def load(cls, directory: Path) -> Analysis:
        """Tables of version 1 get their clusters.

        Raises CheckpointError if the tables are not there, are damaged, or were written by another
        version.
        """
        note = read_note(directory)
        head = read_head(directory / META, (VERSION, WITHOUT_CLUSTERS))
        is_old = head.version == WITHOUT_CLUSTERS
        small: dict[str, Any] = {
            name: read_table(
                directory / f"{name}.parquet",
                [column for column in COLUMNS[name] if not (is_old and column in OF_CLUSTERS)],
            )
            for name in SMALL
        }
        groups, experts = small["groups"], small["experts"]
        check_groups(directory, groups)
        check_experts(directory, groups, experts)
        for name in ("histograms", "energy_map"):
            check_keys(directory, groups, small[name])
        pairs, spectra = (
            ParquetRows(directory / f"{name}.parquet", COLUMNS[name])
            for name in ("similarity", "spectra")
        )
        if note is not None and note.is_of(directory):
            counts, figures = note.counts, note.figures
        else:
            check_pairs(pairs, groups)
            counts, figures = count_spectra(spectra, groups), None
        damaged = partial(withdraw_note, directory)
        of_pairs = TableInFile(pairs, count_pairs(groups), damaged)
        if is_old:
            small["groups"], small["experts"] = _with_clusters(
                groups, experts, of_pairs, head.meta["dtype"]
            )
        check_clusters(directory, small["groups"], small["experts"])
        return cls(
            head.identity,
            head.family,
            head.meta,
            pairs=of_pairs,
            curves=TableInFile(spectra, counts, damaged),
            **small,
            version=head.files,
            figures=figures,
        )

    def json_pieces(self) -> Iterator[str]:
        """`to_json` in pieces: of the large tables, the rows of one group are in memory."""
        verdict = self.verdict
        head = {
            **self._head(),
            "verdict": verdict.verdict,
            "mean_cosine": verdict.mean_cosine,
            "starts": asdict(verdict.starts) if verdict.starts else None,
            "saving": asdict(verdict.saving) if verdict.saving else None,
        }
        yield json.dumps(head, ensure_ascii=False)[:-1]
        large = {"similarity": self.pairs, "spectra": self.curves}
        for name in COLUMNS:
            yield f', "{name}": ['
            tables = (
                (large[name].of_group(*key) for key in large[name].keys)
                if name in large
                else (table for table in (getattr(self, name),) if len(table))
            )
            for number, table in enumerate(tables):
                records = json.loads(table.to_json(orient="records"))
                yield (", " if number else "") + json.dumps(records, ensure_ascii=False)[1:-1]
            yield "]"
        yield "}"

    def to_json(self) -> str:
        """Everything as one JSON text: each table as a list of records."""
        return "".join(self.json_pieces())

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
    """A column of the similarities of one group, as they are in a table, as `[K, K]`."""
    values: np.ndarray = pairs[column].to_numpy()
    return values.reshape(math.isqrt(len(values)), -1)


def _pooled(spectra: pd.DataFrame, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `Analysis.pooled_energy`. spectra: rows of a group; norms: ‖Δ_i‖ `[K]`."""
    if spectra.empty:
        return np.empty(0), np.empty(0)
    weights = norms**2
    total = float(weights.sum())
    shares = weights / total if total else np.full(len(weights), 1 / len(weights))
    experts, index = spectra["expert"].to_numpy(), spectra["index"].to_numpy()
    points, places = np.unique(index, return_inverse=True)
    energies = shares[experts] * spectra["energy"].to_numpy()
    return points, np.bincount(places, weights=energies, minlength=len(points))


def _with_clusters(
    groups: pd.DataFrame, experts: pd.DataFrame, pairs: GroupTable, dtype: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of version 1 with the columns of clusters. dtype: the weights', by name."""
    bits = 8 * Dtype[dtype].itemsize
    assignments, counts, gains = [], [], []
    for key in zip(groups["layer"].tolist(), groups["projection"].tolist(), strict=True):
        norms = of_group(experts, *key)["norm_delta"].to_numpy()
        cosines = square(pairs.of_group(*key, columns=("cos_delta",)), "cos_delta")
        clusters = find_clusters(cosines, norms, bits)
        assignments.append(np.asarray(clusters.assignment))
        counts.append(clusters.count)
        gains.append(clusters.gain)
    return (
        groups.assign(clusters=counts, cluster_gain=gains),
        experts.assign(cluster=np.concatenate(assignments)),
    )
