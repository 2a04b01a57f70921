"""Tables of an analysis as they lie on a disk: read, and checked to be what an analysis writes.

Pages and reports pick rows by their keys and draw what they find, so a file that is damaged in any
way must be noticed here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ders_core.analysis.group_table import Key
from ders_core.analysis.parquet_rows import ADVICE, ParquetRows
from ders_core.checkpoint import PROJECTIONS
from ders_core.errors import CheckpointError, sentence_of
from ders_core.files.dtype import Dtype
from ders_core.files.json_object import read_json
from ders_core.files.untrusted_json import EVERY_KEY
from ders_core.later import np, pa, pd


class _Meta(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    layers: list[int]
    dtype: str
    spectra: str

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in Dtype.__members__:
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
    rows = ParquetRows(file, columns)
    return rows.rows(0, rows.count)


def count_pairs(groups: pd.DataFrame) -> dict[Key, int]:
    """How many pairs of experts each group has. groups: as of `check_groups`."""
    return {key: experts**2 for key, experts in _experts(groups).items()}


def check_pairs(rows: ParquetRows, groups: pd.DataFrame) -> None:
    """Read the pairs of experts of every group, and raise CheckpointError unless all are there, in
    the order in which an analysis writes them. groups: as of `check_groups`."""
    experts, counts = _experts(groups), count_pairs(groups)
    if rows.count != sum(counts.values()):
        raise _contradiction(rows.path.parent)
    keys, begins = list(experts), [*accumulate(counts.values(), initial=0)]
    for first, piece in rows.pieces():  # also the columns that are not looked at: they can be read
        place = first
        while place < first + len(piece):
            number = bisect_right(begins, place) - 1
            end = min(first + len(piece), begins[number + 1])
            part = piece.slice(place - first, end - place)
            inside = slice(place - begins[number], end - begins[number])
            firsts, seconds = _pairs(experts[keys[number]])
            if not (
                _is_all_of(part, keys[number])
                and np.array_equal(part["expert_i"].to_numpy(), firsts[inside])
                and np.array_equal(part["expert_j"].to_numpy(), seconds[inside])
            ):
                raise _contradiction(rows.path.parent)
            place = end


@lru_cache(maxsize=2)
def _pairs(experts: int) -> tuple[np.ndarray, np.ndarray]:
    """The two experts of every pair of a group."""
    numbers = np.arange(experts)
    return np.repeat(numbers, experts), np.tile(numbers, experts)


def _is_all_of(part: pa.Table, key: Key) -> bool:
    layers: np.ndarray = part["layer"].to_numpy()
    names, codes = _words(part)
    is_one = bool((layers == key[0]).all() and (codes == codes[0]).all())
    return is_one and names[codes[0]] == key[1]


def _words(part: pa.Table) -> tuple[list[str], np.ndarray]:
    """Projections, and the number of each row's among them."""
    words = part["projection"].combine_chunks()
    if not pa.types.is_dictionary(words.type):
        words = words.dictionary_encode()
    return words.dictionary.to_pylist(), words.indices.to_numpy()


def count_spectra(rows: ParquetRows, groups: pd.DataFrame) -> dict[Key, int]:
    """Read the table of spectra: how many rows each group has, those of a group together.

    groups: as of `check_groups`. Raises CheckpointError if there are rows of another one.
    """
    experts = _experts(groups)
    counts: dict[Key, int] = {}
    before: Key | None = None
    for key, run in _runs(rows) if rows.count else ():
        numbers: np.ndarray = run["expert"].to_numpy()
        is_whole = key == before or key not in counts
        if not is_whole or numbers.min() < 0 or numbers.max() >= experts.get(key, 0):
            raise _contradiction(rows.path.parent)
        counts[key] = counts.get(key, 0) + len(run)
        before = key
    return counts


def _runs(rows: ParquetRows) -> Iterator[tuple[Key, pa.Table]]:
    """The rows of a group that follow one another, again and again."""
    for _, piece in rows.pieces():
        layers: np.ndarray = piece["layer"].to_numpy()
        names, codes = _words(piece)
        changes = np.flatnonzero((np.diff(layers) != 0) | (np.diff(codes) != 0)) + 1
        for begin, end in pairwise([0, *changes.tolist(), len(layers)]):
            if end > begin:
                yield (int(layers[begin]), names[codes[begin]]), piece.slice(begin, end - begin)


def check_groups(directory: Path, groups: pd.DataFrame) -> None:
    """Raise CheckpointError unless there is a group, each once, with names and sizes of groups."""
    layers, sizes = groups["layer"].to_numpy(), groups[["experts", "out", "in"]].to_numpy()
    if (
        groups.empty
        or groups.duplicated(["layer", "projection"]).any()
        or not set(groups["projection"]) <= set(PROJECTIONS)
        or (layers < 0).any()
        or (sizes < 1).any()
    ):
        raise _contradiction(directory)


def check_experts(directory: Path, groups: pd.DataFrame, experts: pd.DataFrame) -> None:
    """Raise CheckpointError unless there is a row for every expert of every group, in the order in
    which an analysis writes them. groups: as of `check_groups`."""
    counts = groups["experts"].to_numpy()
    if sum(counts.tolist()) != len(experts):
        raise _contradiction(directory)
    expected = {
        "layer": np.repeat(groups["layer"].to_numpy(), counts),
        "projection": np.repeat(groups["projection"].to_numpy(), counts),
        "expert": np.concatenate([np.arange(count) for count in counts]),
    }
    for column, values in expected.items():
        if not np.array_equal(experts[column].to_numpy(), values):
            raise _contradiction(directory)


def check_keys(directory: Path, groups: pd.DataFrame, table: pd.DataFrame) -> None:
    """Raise CheckpointError if a table has rows of a group that is none of the groups."""
    keys = table[["layer", "projection"]].drop_duplicates().itertuples(index=False, name=None)
    if not set(keys) <= _experts(groups).keys():
        raise _contradiction(directory)


def check_clusters(directory: Path, groups: pd.DataFrame, experts: pd.DataFrame) -> None:
    """Raise CheckpointError unless every expert is in one of its group's clusters. groups, experts:
    as of `check_experts`."""
    clusters = experts["cluster"].to_numpy()
    most = np.repeat(groups["clusters"].to_numpy(), groups["experts"].to_numpy())
    if (clusters < 0).any() or (clusters >= most).any():
        raise _contradiction(directory)


def _experts(groups: pd.DataFrame) -> dict[Key, int]:
    """How many experts each group has."""
    keys = zip(groups["layer"].tolist(), groups["projection"].tolist(), strict=True)
    return dict(zip(keys, groups["experts"].tolist(), strict=True))


def _contradiction(directory: Path) -> CheckpointError:
    return CheckpointError(f"{directory}: the tables contradict each other; {ADVICE}")
