"""A saved analysis that is damaged: one sentence, and never a table that pages cannot draw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.messages import raises_saying

from ders_core.analysis import Analysis, analyze
from ders_core.analysis.tables import COLUMNS, META
from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "analysis"
    analyze(open_checkpoint(mixtral_dir), spectra="head").save(directory)
    return directory


@pytest.fixture
def saved(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "analysis"))


def test_what_was_saved_is_read(saved: Path, whole: Path) -> None:
    first, second = Analysis.load(saved), Analysis.load(whole)
    assert first.to_json() == second.to_json()
    assert list(first.groups.columns) == list(COLUMNS["groups"])


@pytest.mark.parametrize("key", ["version", "identity", "family", "meta"])
@pytest.mark.parametrize("value", [None, [], {}, 3.5, "x", ...])
def test_a_head_without_its_keys(saved: Path, key: str, value: Any) -> None:
    head = json.loads((saved / META).read_text())
    if isinstance(value, str) and key in ("identity", "family"):
        pytest.skip("any text may be there")
    head = {name: each for name, each in head.items() if name != key}
    if value is not ...:
        head[key] = value
    (saved / META).write_text(json.dumps(head))
    with raises_saying(CheckpointError, str(saved), "analyse again"):
        Analysis.load(saved)


@pytest.mark.parametrize(
    "change", [{"layers": 3}, {"layers": ["0"]}, {"dtype": "F3"}, {"spectra": None}]
)
def test_a_head_that_says_something_else(saved: Path, change: dict[str, Any]) -> None:
    head = json.loads((saved / META).read_text())
    head["meta"] |= change
    (saved / META).write_text(json.dumps(head))
    with raises_saying(CheckpointError, META, next(iter(change))):
        Analysis.load(saved)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 5000, '{"version": 2, "version": 2}'])
def test_a_head_that_is_none(saved: Path, text: str) -> None:
    (saved / META).write_text(text)
    with raises_saying(CheckpointError, META):
        Analysis.load(saved)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 60 + b"PAR1", b"words"])
@pytest.mark.parametrize("name", ["groups", "spectra"])
def test_a_table_that_is_none(saved: Path, name: str, content: bytes) -> None:
    (saved / f"{name}.parquet").write_bytes(content)
    with raises_saying(CheckpointError, f"{name}.parquet"):
        Analysis.load(saved)


Change = Callable[[pd.DataFrame], pd.DataFrame]

CHANGES: dict[str, tuple[str, Change]] = {
    "no rows": ("groups", lambda table: table[:0]),
    "no column": ("experts", lambda table: table.drop(columns="norm")),
    "words for numbers": ("groups", lambda table: table.assign(norm_base="x")),
    "numbers for words": ("groups", lambda table: table.assign(projection=3)),
    "halves of experts": ("groups", lambda table: table.assign(experts=4.5)),
    "an unknown projection": ("groups", lambda table: table.assign(projection="side")),
    "a group twice": ("groups", lambda table: pd.concat([table, table[:1]])),
    "negative sizes": ("groups", lambda table: table.assign(**{"in": -1})),
    "too many experts": ("groups", lambda table: table.assign(experts=10**9)),
    "a layer less": ("groups", lambda table: table[1:]),
    "a pair less": ("similarity", lambda table: table[:-1]),
    "pairs in another order": ("similarity", lambda table: table[::-1]),
    "pairs of others": ("similarity", lambda table: table.assign(expert_i=0)),
    "an expert twice": ("experts", lambda table: table.assign(expert=0)),
    "a cluster that is not there": ("experts", lambda table: table.assign(cluster=9)),
    "a cluster below all": ("experts", lambda table: table.assign(cluster=-1)),
    "spectra of another layer": ("spectra", lambda table: table.assign(layer=77)),
    "energies of another projection": ("energy_map", lambda t: t.assign(projection="side")),
}


@pytest.mark.parametrize("case", CHANGES)
def test_tables_that_contradict_each_other(saved: Path, case: str) -> None:
    name, change = CHANGES[case]
    file = saved / f"{name}.parquet"
    change(pd.read_parquet(file)).to_parquet(file, index=False)
    with raises_saying(CheckpointError, str(saved), "analyse again"):
        Analysis.load(saved)
