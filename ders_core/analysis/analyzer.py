"""Analyse a checkpoint group by group, in this process or in others, into growing tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from ders_core.analysis.group_table import TableInMemory, whole
from ders_core.analysis.origins import find_clusters
from ders_core.analysis.similarity import GroupStatistics, group_statistics
from ders_core.analysis.spectra import SPECTRA, Spectra, Spectrum, group_spectra
from ders_core.analysis.tables import COLUMNS, SMALL, Analysis
from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.checkpoint.streaming import SLAB_BYTES
from ders_core.compute.buffers import fresh, keep_small_blocks, memory_is_reused
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.compute.tasks import TaskRunner, one_by_one, with_next
from ders_core.decompose.clusters import Clusters
from ders_core.errors import CheckpointError
from ders_core.files.cache import opened
from ders_core.files.cold_reads import reading_once
from ders_core.files.inputs import Held, held_files, same_inputs, unchanged_inputs
from ders_core.later import np, pd
from ders_core.packed.open import open_checkpoint

KEPT_BYTES = 256 << 20
"""Of a group's weights, that are kept from one reading for its spectra. Larger groups, which take
longer to compute with than to read, are read once more."""

Rows = dict[str, "pd.DataFrame"]
"""The rows of one group, by the name of the table."""


@dataclass(frozen=True)
class AnalyzeTask:
    """What a process needs to analyse one group: plain values, so that it can be sent to one.

    checkpoint: a path or an address, which may hold credentials. identity: of the checkpoint.
    ahead: the group that is analysed next, by any process; its bytes are read beforehand. held: the
    files that the analysis has opened, which the task must read.
    """

    checkpoint: str = field(repr=False)
    identity: str
    layer: int
    projection: str
    spectra: Spectra
    device: str
    ahead: tuple[int, str] | None
    held: Held = field(default=Held(), repr=False)


@dataclass(frozen=True)
class GroupTables:
    """One group's rows of each table. nbytes: of its experts."""

    layer: int
    projection: str
    nbytes: int
    rows: Rows


@unchanged_inputs()
@memory_is_reused()
def analyze(
    checkpoint: Checkpoint,
    *,
    layers: Sequence[int] | None = None,
    spectra: Spectra = "curve",
    device: str = "cpu",
    runner: TaskRunner = one_by_one,
    known: Analysis | None = None,
    grown: Callable[[Analysis], None] | None = None,
    progress: Progress = quiet,
) -> Analysis:
    """Similarity, norms, moments and histograms of every group, and singular values.

    Each group is read once for everything but the spectra, and if it is above KEPT_BYTES once more
    for them. layers: only these. spectra: `curve` estimates those of matrices whose shorter side is
    above 1536 to 1 % of cumulative energy, `exact` never estimates, `head` computes the 16 largest
    of these matrices, `none` skips spectra. runner: executes the tasks, one for each group. known:
    an unfinished analysis; if it is of the files as they are now, its groups are not read again.
    grown: called with the tables so far whenever a layer is finished. progress counts bytes of
    experts.

    Raises CheckpointError for a layer without experts, for non-finite weights, and if a file is
    written while it is read; ValueError for an unknown kind of spectra.
    """
    if spectra not in SPECTRA:
        raise ValueError(f"spectra {spectra!r} are not one of {', '.join(SPECTRA)}")
    checkpoint.store.hold()
    wanted = checkpoint.moe_layers if layers is None else sorted(set(layers))
    unknown = sorted(set(wanted) - set(checkpoint.moe_layers))
    if unknown:
        raise CheckpointError(
            f"{checkpoint.path.name} has no experts at layer {unknown[0]}; its MoE layers are "
            f"{checkpoint.moe_layers[0]} to {checkpoint.moe_layers[-1]}"
        )
    groups = [group for group in checkpoint.groups() if group.layer in wanted]
    growing = _GrowingTables(checkpoint, groups, spectra, known)
    missing = [group for group in groups if group.key not in growing.finished]
    meter = Meter(sum(group.nbytes for group in groups), progress)
    left = sum(group.nbytes for group in missing)
    meter.at(meter.total - left, f"{len(missing)} groups to read")
    held = held_files()
    tasks = [
        AnalyzeTask(
            checkpoint.place,
            checkpoint.identity,
            *group.key,
            spectra,
            device,
            following.key if following else None,
            held,
        )
        for group, following in with_next(missing)
    ]
    for tables in runner(analyze_group, tasks):
        growing.add(tables)
        meter.advance(tables.nbytes, f"layer {tables.layer}, {tables.projection}")
        is_last = meter.done == meter.total
        if grown is not None and growing.is_layer_finished(tables.layer) and not is_last:
            grown(growing.analysis())
    meter.finish("analysed")
    return growing.analysis()


def analyze_group(task: AnalyzeTask) -> GroupTables:
    """Read one group and compute its rows of every table. Raises CheckpointError, also if a file
    was written meanwhile."""
    keep_small_blocks()
    with same_inputs(task.held):  # what was read in several passes is one content
        checkpoint: Checkpoint = opened(open_checkpoint, task.checkpoint, task.identity)
        checkpoint.store.hold()
        group = checkpoint.group(task.layer, task.projection)
        stored = group.as_it_lies()  # perhaps transposed, which is quicker to read
        base = kept = spectra = None
        if task.spectra != "none":
            base = fresh(stored.shape[1:], group.dtype.torch, task.device)
            if math.prod(stored.shape) * group.dtype.itemsize <= KEPT_BYTES:
                kept = fresh(stored.shape, group.dtype.torch, task.device)
        with reading_once() if base is None or kept is not None else nullcontext():
            statistics = group_statistics(stored, task.device, base, kept)
            if task.ahead:
                checkpoint.group(*task.ahead).read_ahead(at_once=SLAB_BYTES)
        if base is not None:
            norms = statistics.norm_delta
            spectra = group_spectra(stored, base, norms, task.spectra, kept)
        if stored is not group:
            statistics = statistics.transposed()
    return GroupTables(*group.key, group.nbytes, _rows(group, statistics, spectra))


class _GrowingTables:
    """The tables of the groups that are finished, in the checkpoint's order."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        groups: Sequence[ExpertGroup],
        spectra: Spectra,
        known: Analysis | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._order = [group.key for group in groups]
        self._meta = {
            "name": checkpoint.path.name,
            "experts": checkpoint.num_experts,
            "top_k": checkpoint.top_k,
            "dtype": checkpoint.dtype.name,
            "layers": sorted({group.layer for group in groups}),
            "spectra": spectra,
            "base": "mean",
        }
        self.finished: dict[tuple[int, str], Rows] = {}
        if known is not None and known.is_of(checkpoint.store) and known.meta == self._meta:
            for key in known.group_keys():
                self.finished[key] = known.rows_of(*key)

    def add(self, tables: GroupTables) -> None:
        self.finished[tables.layer, tables.projection] = tables.rows

    def is_layer_finished(self, layer: int) -> bool:
        """Whether no group of the layer is missing."""
        return all(key in self.finished for key in self._order if key[0] == layer)

    def analysis(self) -> Analysis:
        finished = [key for key in self._order if key in self.finished]
        tables = {
            name: TableInMemory(columns, {key: self.finished[key][name] for key in finished})
            for name, columns in COLUMNS.items()
        }
        small: dict[str, Any] = {name: whole(tables[name]) for name in SMALL}
        return Analysis(
            self._checkpoint.identity,
            self._checkpoint.family,
            dict(self._meta),
            pairs=tables["similarity"],
            curves=tables["spectra"],
            **small,
            version=self._checkpoint.store.version,
        )


def _rows(group: ExpertGroup, statistics: GroupStatistics, spectra: list[Spectrum] | None) -> Rows:
    """The group's rows of every table."""
    clusters = find_clusters(statistics.cos_delta, statistics.norm_delta, 8 * group.dtype.itemsize)
    columns = {
        "groups": _group_row(group, statistics, clusters),
        "similarity": _similarity_columns(statistics),
        "experts": _expert_columns(statistics, clusters, spectra),
        "spectra": _spectrum_columns(spectra or []),
        "histograms": {
            "left": statistics.edges[:-1],
            "right": statistics.edges[1:],
            "count": statistics.counts,
        },
        "energy_map": _energy_columns(statistics),
    }
    tables = {}
    for name, values in columns.items():
        table = pd.DataFrame(values)
        table.insert(0, "layer", group.layer)
        table.insert(1, "projection", group.projection)
        tables[name] = table[list(COLUMNS[name])]
    return tables


def _group_row(
    group: ExpertGroup, statistics: GroupStatistics, clusters: Clusters
) -> dict[str, Any]:
    experts, out, width = group.shape
    pairs = np.triu_indices(experts, 1)
    apart = statistics.one_minus_cos[pairs] if experts > 1 else np.zeros(1)
    together = statistics.cos_delta[pairs] if experts > 1 else np.zeros(1)
    norm_base, norm_delta = statistics.norm_base, float(statistics.norm_delta.mean())
    row = {
        "experts": experts,
        "out": out,
        "in": width,
        "norm_base": norm_base,
        "mean_norm_delta": norm_delta,
        "norm_ratio": norm_delta / norm_base if norm_base else 0.0,
        "mean_one_minus_cos": float(apart.mean()),
        "max_one_minus_cos": float(apart.max()),
        "mean_cos_delta": float(together.mean()),
        "clusters": clusters.count,
        "cluster_gain": clusters.gain,
    }
    return {name: [value] for name, value in row.items()}


def _similarity_columns(statistics: GroupStatistics) -> dict[str, np.ndarray]:
    experts = np.arange(len(statistics.one_minus_cos))
    return {
        "expert_i": np.repeat(experts, len(experts)),
        "expert_j": np.tile(experts, len(experts)),
        "one_minus_cos": statistics.one_minus_cos.reshape(-1),
        "cos_delta": statistics.cos_delta.reshape(-1),
    }


def _expert_columns(
    statistics: GroupStatistics, clusters: Clusters, spectra: list[Spectrum] | None
) -> dict[str, Any]:
    experts = len(statistics.norm)
    names = ("norm", "norm_delta", "mean", "std", "kurtosis", "max_abs")
    ranks = {
        name: [getattr(each, name) for each in spectra] if spectra else np.full(experts, np.nan)
        for name in ("effective_rank", "stable_rank")
    }
    return {
        "expert": np.arange(experts),
        **{name: getattr(statistics, name) for name in names},
        **ranks,
        "cluster": np.asarray(clusters.assignment, dtype=np.int64),
    }


def _spectrum_columns(spectra: list[Spectrum]) -> dict[str, np.ndarray]:
    lengths = [len(each.index) for each in spectra]
    columns = {
        "expert": (np.repeat(np.arange(len(spectra)), lengths), np.int64),
        "index": (_joined([each.index for each in spectra]), np.int64),
        "singular_value": (_joined([each.singular_value for each in spectra]), np.float64),
        "energy": (_joined([each.energy for each in spectra]), np.float64),
    }
    return {name: values.astype(dtype) for name, (values, dtype) in columns.items()}


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _energy_columns(statistics: GroupStatistics) -> dict[str, np.ndarray]:
    axes = {"row": statistics.row_energy, "column": statistics.column_energy}
    lengths = [len(energies) for energies in axes.values()]
    return {
        "axis": np.repeat(list(axes), lengths),
        "bin": np.concatenate([np.arange(length) for length in lengths]),
        "energy": np.concatenate(list(axes.values())),
    }
