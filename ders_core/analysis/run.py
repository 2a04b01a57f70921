"""Analyse a checkpoint, one group in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ders_core.analysis.similarity import GroupStatistics, group_statistics
from ders_core.analysis.spectra import Spectrum, spectrum
from ders_core.analysis.starts import find_clusters
from ders_core.analysis.tables import COLUMNS, Analysis
from ders_core.checkpoint import NAMES, Checkpoint, ExpertGroup
from ders_core.decompose import Decomposition, mean_base
from ders_core.errors import CheckpointError
from ders_core.progress import Progress, quiet

Rows = dict[str, list[dict[str, Any]]]


def analyze(
    checkpoint: Checkpoint,
    *,
    layers: Sequence[int] | None = None,
    spectra: bool = True,
    device: str = "cpu",
    progress: Progress = quiet,
) -> Analysis:
    """Similarity, norms, moments and histograms of every group; with `spectra` singular values too.

    layers: only these. progress counts bytes of experts. Raises CheckpointError for a layer without
    experts and for non-finite weights.
    """
    wanted = checkpoint.moe_layers if layers is None else sorted(set(layers))
    unknown = sorted(set(wanted) - set(checkpoint.moe_layers))
    if unknown:
        raise CheckpointError(
            f"{checkpoint.path.name} has no experts at layer {unknown[0]}; its MoE layers are "
            f"{checkpoint.moe_layers[0]} to {checkpoint.moe_layers[-1]}"
        )
    groups = [group for group in checkpoint.groups() if group.layer in wanted]
    total, done = sum(group.nbytes for group in groups), 0
    rows: Rows = {name: [] for name in COLUMNS}
    for group in groups:
        progress(done, total, f"layer {group.layer}, {group.projection}")
        with torch.inference_mode():
            statistics = group_statistics(group, device)
            found = _spectra(group, device) if spectra else None
        _collect(rows, group, statistics, found)
        done += group.nbytes
    progress(total, total, "analysed")
    tables = {name: pd.DataFrame(rows[name], columns=list(COLUMNS[name])) for name in COLUMNS}
    meta = {
        "name": checkpoint.path.name,
        "experts": checkpoint.num_experts,
        "top_k": checkpoint.top_k,
        "dtype": NAMES[checkpoint.dtype],
        "layers": list(wanted),
        "spectra": spectra,
        "base": "mean",
    }
    return Analysis(checkpoint.identity, checkpoint.family, meta, **tables)


def _spectra(group: ExpertGroup, device: str) -> list[Spectrum]:
    decomposition = Decomposition(group, mean_base(group).to(device))
    return [spectrum(delta) for delta in decomposition.deltas()]


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
