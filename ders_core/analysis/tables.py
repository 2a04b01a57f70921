"""`Analysis`: what was found about a checkpoint, as plain tables that can be saved and loaded."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ders_core.analysis.verdict import Verdict, judge
from ders_core.errors import CheckpointError

VERSION = 1
META = "meta.json"

COLUMNS: dict[str, tuple[str, ...]] = {
    "groups": (
        *("layer", "projection", "experts", "out", "in", "norm_base", "mean_norm_delta"),
        *("norm_ratio", "mean_one_minus_cos", "max_one_minus_cos", "mean_cos_delta"),
    ),
    "similarity": ("layer", "projection", "expert_i", "expert_j", "one_minus_cos", "cos_delta"),
    "experts": (
        *("layer", "projection", "expert", "norm", "norm_delta", "mean", "std", "kurtosis"),
        *("max_abs", "effective_rank", "stable_rank"),
    ),
    "spectra": ("layer", "projection", "expert", "index", "singular_value", "energy"),
    "histograms": ("layer", "projection", "left", "right", "count"),
    "energy_map": ("layer", "projection", "axis", "bin", "energy"),
}


@dataclass(frozen=True)
class Analysis:
    """Tidy tables, one row a fact; COLUMNS names them. Deltas are against the experts' mean.

    norm_ratio: mean ‖Δ_i‖ / ‖W_base‖. energy in `spectra`: cumulative share of Σσ²; in
    `energy_map`: share of ΣΔ² in a bin of rows or columns.
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

    @property
    def verdict(self) -> Verdict:
        """From every pair of every group."""
        mean = float(self.groups["mean_one_minus_cos"].mean())
        return judge(1.0 - mean)

    def group_keys(self) -> list[tuple[int, str]]:
        """(layer, projection) of every group, in the order of the tables."""
        layers, projections = self.groups["layer"].tolist(), self.groups["projection"].tolist()
        return list(zip(layers, projections, strict=True))

    def save(self, directory: Path) -> None:
        """Write the tables as Parquet beside meta.json; the directory appears whole."""
        aside = directory.with_name(directory.name + f".{os.getpid()}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name in COLUMNS:
            getattr(self, name).to_parquet(aside / f"{name}.parquet", index=False)
        (aside / META).write_text(json.dumps(self._head(), indent=2), encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        os.rename(aside, directory)

    @classmethod
    def load(cls, directory: Path) -> Analysis:
        """Raises CheckpointError if the tables are not there or were written by another version."""
        try:
            head = json.loads((directory / META).read_text(encoding="utf-8"))
            if head["version"] != VERSION:
                raise CheckpointError(
                    f"{directory} was written in version {head['version']}; analyse again"
                )
            tables = {name: pd.read_parquet(directory / f"{name}.parquet") for name in COLUMNS}
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{directory} holds no readable analysis ({error}); analyse again"
            ) from error
        return cls(head["identity"], head["family"], head["meta"], **tables)

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
                **tables,
            },
            ensure_ascii=False,
        )

    def _head(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "identity": self.identity,
            "family": self.family,
            "meta": self.meta,
        }


def of_group(table: pd.DataFrame, layer: int, projection: str) -> pd.DataFrame:
    """The rows of one group."""
    chosen: pd.DataFrame = table[(table["layer"] == layer) & (table["projection"] == projection)]
    return chosen
