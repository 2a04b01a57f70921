"""Tables of an analysis as they lie on a disk: read, and checked to be what an analysis writes.

Pages and reports pick rows by their keys and draw what they find, so a file that is damaged in any
way must be noticed here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ders_core.checkpoint import PROJECTIONS
from ders_core.errors import CheckpointError, sentence_of
from ders_core.files.json_object import read_json
from ders_core.files.spec import DTYPES
from ders_core.files.untrusted_json import EVERY_KEY

WORDS = frozenset(("projection", "axis"))
COUNTS = frozenset(
    (
        *("layer", "experts", "out", "in", "clusters", "expert", "expert_i", "expert_j"),
        *("cluster", "index", "count", "bin"),
    )
)
"""Columns of words, and of whole numbers; the others hold any numbers."""

ADVICE = "analyse again"


class _Meta(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    layers: list[int]
    dtype: str
    spectra: str

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in DTYPES:
            raise ValueError(f"{value[:20]!r} is no dtype")
        return value


class Head(BaseModel):
    """The file meta.json. meta: what was analysed, and how."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    version: int
    identity: str
    family: str
    meta: dict[str, Any]
    files: str = Field(default="")
    """Missing in files of earlier versions."""

    @field_validator("meta")
    @classmethod
    def _check_meta(cls, value: dict[str, Any]) -> dict[str, Any]:
        _Meta.model_validate(value)
        return value


def read_head(file: Path, versions: Collection[int]) -> Head:
    """Raises CheckpointError if the file is missing, of another version, or says too little."""
    fields = read_json(file, once=EVERY_KEY)
    if fields.get("version") not in versions:
        raise CheckpointError(
            f"{file.parent} was written in version {str(fields.get('version'))[:20]}; {ADVICE}"
        )
    try:
        return Head.model_validate(fields)
    except ValidationError as error:
        raise CheckpointError(f"{file}: {sentence_of(error)}; {ADVICE}") from error


def read_table(file: Path, columns: Collection[str]) -> pd.DataFrame:
    """A table of at least these columns, each of the kind that its name stands for.

    Raises CheckpointError if it cannot be read or lacks one.
    """
    try:
        table = pd.read_parquet(file)
    except Exception as error:  # pyarrow fails in many ways on a damaged file
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{file} cannot be read: {words}; {ADVICE}") from error
    for column in columns:
        if column not in table.columns or not _is_of_kind(table[column], column):
            raise CheckpointError(f"{file} has no such column {column!r} as it needs; {ADVICE}")
    return table[list(columns)]


def check_together(directory: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise CheckpointError unless the tables speak of the same groups, and of every expert and
    pair of experts in each, in the order in which an analysis writes them."""
    if not _agree(tables):
        raise CheckpointError(f"{directory}: the tables contradict each other; {ADVICE}")


def _agree(tables: Mapping[str, pd.DataFrame]) -> bool:
    groups = tables["groups"]
    names, layers = groups["projection"].to_numpy(), groups["layer"].to_numpy()
    experts = groups["experts"].to_numpy()
    sizes = groups[["experts", "out", "in"]].to_numpy()
    if groups.empty or groups.duplicated(["layer", "projection"]).any():
        return False
    if not set(names) <= set(PROJECTIONS) or (layers < 0).any() or (sizes < 1).any():
        return False
    rows, pairs = sum(experts.tolist()), sum(count**2 for count in experts.tolist())
    if (rows, pairs) != (len(tables["experts"]), len(tables["similarity"])):
        return False
    numbers = [np.arange(count) for count in experts]
    expected = {
        "experts": (experts, {"expert": np.concatenate(numbers)}),
        "similarity": (
            experts**2,
            {
                "expert_i": np.concatenate([np.repeat(each, len(each)) for each in numbers]),
                "expert_j": np.concatenate([np.tile(each, len(each)) for each in numbers]),
            },
        ),
    }
    for name, (counts, columns) in expected.items():
        columns["layer"], columns["projection"] = (
            np.repeat(layers, counts),
            np.repeat(names, counts),
        )
        for column, values in columns.items():
            if not np.array_equal(tables[name][column].to_numpy(), values):
                return False
    keys = set(zip(layers.tolist(), names.tolist(), strict=True))
    seen = [
        tables[name][["layer", "projection"]].drop_duplicates()
        for name in ("spectra", "histograms", "energy_map")
    ]
    return all(set(each.itertuples(index=False, name=None)) <= keys for each in seen)


def check_clusters(directory: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise CheckpointError unless every expert is in one of its group's clusters. tables: as of
    `check_together`."""
    groups, clusters = tables["groups"], tables["experts"]["cluster"].to_numpy()
    most = np.repeat(groups["clusters"].to_numpy(), groups["experts"].to_numpy())
    if (clusters < 0).any() or (clusters >= most).any():
        raise CheckpointError(f"{directory}: the tables contradict each other; {ADVICE}")


def _is_of_kind(values: pd.Series, column: str) -> bool:
    if values.empty:  # of no kind; an analysis without spectra has such a table
        return True
    if column in WORDS:
        return all(isinstance(value, str) for value in values.unique())
    return values.dtype.kind in ("iu" if column in COUNTS else "iuf")
