"""Analyse a checkpoint: each group by itself, whoever does it, and the tables grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from ders_core.analysis.origins import find_clusters
from ders_core.analysis.similarity import GroupStatistics, group_statistics
from ders_core.analysis.spectra import SPECTRA, Spectra, Spectrum, group_spectra
from ders_core.analysis.tables import COLUMNS, Analysis
from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.compute.tasks import TaskRunner, one_by_one, with_next
from ders_core.errors import CheckpointError
from ders_core.files.cache import opened
from ders_core.files.spec import NAMES
from ders_core.packed.open import open_checkpoint

Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class AnalyzeTask:
    """All that a process needs to analyse one group; plain values, so that it can travel.

    checkpoint: a path or an address, which may hold credentials. identity: of the checkpoint.
    ahead: the group that somebody will analyse soon; its bytes are read beforehand.
    """

    checkpoint: str = field(repr=False)
    identity: str
    layer: int
    projection: str
    spectra: Spectra
    device: str
    ahead: tuple[int, str] | None


@dataclass(frozen=True)
class GroupTables:
    """rows: of each table, for one group."""

    layer: int
    projection: str
    nbytes: int
    rows: Rows


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

    Each group is read once for all but the spectra, and once more for them. layers: only these.
    spectra: `curve` estimates those of matrices whose shorter side is above 1536 to 1 % of
    cumulative energy, `exact` never does, `head` tells the 16 largest of these, `none` none.
    runner: executes the tasks, one for each group. known: an unfinished analysis of the same
    checkpoint; its groups are not read again. grown: called with what there is whenever a layer is
    finished. progress counts bytes of experts.

    Raises CheckpointError for a layer without experts and for non-finite weights, ValueError for
    spectra of no kind.
    """
    if spectra not in SPECTRA:
        raise ValueError(f"spectra {spectra!r} are none of {', '.join(SPECTRA)}")
    wanted = checkpoint.moe_layers if layers is None else sorted(set(layers))
    unknown = sorted(set(wanted) - set(checkpoint.moe_layers))
    if unknown:
        raise CheckpointError(
            f"{checkpoint.path.name} has no experts at layer {unknown[0]}; its MoE layers are "
            f"{checkpoint.moe_layers[0]} to {checkpoint.moe_layers[-1]}"
        )
    groups = [group for group in checkpoint.groups() if group.layer in wanted]
    growing = _Growing(checkpoint, groups, spectra, known)
    missing = [group for group in groups if group.key not in growing.finished]
    meter = Meter(sum(group.nbytes for group in groups), progress)
    left = sum(group.nbytes for group in missing)
    meter.at(meter.total - left, f"{len(missing)} groups to read")
    tasks = [
        AnalyzeTask(
            checkpoint.place,
            checkpoint.identity,
            *group.key,
            spectra,
            device,
            following.key if following else None,
        )
        for group, following in with_next(missing)
    ]
    for found in runner(analyze_group, tasks):
        growing.add(found)
        meter.advance(found.nbytes, f"layer {found.layer}, {found.projection}")
        if grown is not None and growing.ends(found.layer) and meter.done < meter.total:
            grown(growing.analysis())
    meter.finish("analysed")
    return growing.analysis()


def analyze_group(task: AnalyzeTask) -> GroupTables:
    """Read one group and tell what its tables hold. Raises CheckpointError."""
    checkpoint: Checkpoint = opened(open_checkpoint, task.checkpoint, task.identity)
    group = checkpoint.group(task.layer, task.projection)
    lying = group.as_it_lies()
    base = torch.empty(lying.shape[1:], dtype=group.dtype)
    found = group_statistics(lying, task.device, base)
    if lying is not group:
        found = found.turned()
    if task.ahead:
        checkpoint.group(*task.ahead).read_ahead()
    spectra = None
    if task.spectra != "none":
        spectra = group_spectra(lying, base, found.norm_delta, task.spectra, task.device)
    rows: Rows = {name: [] for name in COLUMNS}
    _collect(rows, group, found, spectra)
    return GroupTables(*group.key, group.nbytes, rows)


class _Growing:
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
            "dtype": NAMES[checkpoint.dtype],
            "layers": sorted({group.layer for group in groups}),
            "spectra": spectra,
            "base": "mean",
        }
        self.finished: dict[tuple[int, str], Rows] = {}
        same = known is not None and known.identity == checkpoint.identity
        if known is not None and same and known.meta == self._meta:
            for key in known.group_keys():
                self.finished[key] = known.rows_of(*key)

    def add(self, found: GroupTables) -> None:
        self.finished[found.layer, found.projection] = found.rows

    def ends(self, layer: int) -> bool:
        """Whether no group of the layer is missing."""
        return all(key in self.finished for key in self._order if key[0] == layer)

    def analysis(self) -> Analysis:
        own = [self.finished[key] for key in self._order if key in self.finished]
        tables = {
            name: pd.DataFrame([row for rows in own for row in rows[name]], columns=list(columns))
            for name, columns in COLUMNS.items()
        }
        return Analysis(
            self._checkpoint.identity, self._checkpoint.family, dict(self._meta), **tables
        )


def _collect(
    rows: Rows, group: ExpertGroup, found: GroupStatistics, spectra: list[Spectrum] | None
) -> None:
    where = {"layer": group.layer, "projection": group.projection}
    experts, out, width = group.shape
    pairs = np.triu_indices(experts, 1)
    apart = found.one_minus_cos[pairs] if experts > 1 else np.zeros(1)
    together = found.cos_delta[pairs] if experts > 1 else np.zeros(1)
    mean_delta = float(found.norm_delta.mean())
    clusters = find_clusters(found.cos_delta, found.norm_delta, 8 * group.dtype.itemsize)
    rows["groups"].append(
        where
        | {
            "experts": experts,
            "out": out,
            "in": width,
            "norm_base": found.norm_base,
            "mean_norm_delta": mean_delta,
            "norm_ratio": mean_delta / found.norm_base if found.norm_base else 0.0,
            "mean_one_minus_cos": float(apart.mean()),
            "max_one_minus_cos": float(apart.max()),
            "mean_cos_delta": float(together.mean()),
            "clusters": clusters.count,
            "cluster_gain": clusters.gain,
        }
    )
    rows["similarity"] += [
        where
        | {
            "expert_i": i,
            "expert_j": j,
            "one_minus_cos": float(found.one_minus_cos[i, j]),
            "cos_delta": float(found.cos_delta[i, j]),
        }
        for i in range(experts)
        for j in range(experts)
    ]
    for expert in range(experts):
        own = spectra[expert] if spectra else None
        rows["experts"].append(
            where
            | {
                "expert": expert,
                "norm": float(found.norm[expert]),
                "norm_delta": float(found.norm_delta[expert]),
                "mean": float(found.mean[expert]),
                "std": float(found.std[expert]),
                "kurtosis": float(found.kurtosis[expert]),
                "max_abs": float(found.max_abs[expert]),
                "effective_rank": own.effective_rank if own else np.nan,
                "stable_rank": own.stable_rank if own else np.nan,
                "cluster": clusters.assignment[expert],
            }
        )
        if own:
            rows["spectra"] += [
                where
                | {
                    "expert": expert,
                    "index": int(index),
                    "singular_value": float(value),
                    "energy": float(energy),
                }
                for index, value, energy in zip(
                    own.index, own.singular_value, own.energy, strict=True
                )
            ]
    rows["histograms"] += [
        where | {"left": float(left), "right": float(right), "count": int(count)}
        for left, right, count in zip(found.edges[:-1], found.edges[1:], found.counts, strict=True)
    ]
    for axis, energies in (("row", found.row_energy), ("column", found.column_energy)):
        rows["energy_map"] += [
            where | {"axis": axis, "bin": number, "energy": float(energy)}
            for number, energy in enumerate(energies)
        ]
