"""What a saved analysis tells of all its pairs without reading them, and when it reads them all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.large_analyses import save_drawn_analysis
from support.large_workspaces import make_many_tensors
from support.messages import raises_saying

from ders_core.analysis import Analysis
from ders_core.analysis.parquet_rows import ParquetRows
from ders_core.analysis.written_note import NOTE, WrittenNote
from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint

EXPERTS = 12
LARGE = {"similarity", "spectra"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis whose experts fall into two sets in every group."""
    place = tmp_path_factory.mktemp("drawn")
    make_many_tensors(place / "moe", 3, EXPERTS)
    save_drawn_analysis(place / "one", open_checkpoint(place / "moe"), 2)
    one = Analysis.load(place / "one")
    replace(
        one,
        groups=one.groups.assign(clusters=2, cluster_gain=0.5),
        experts=one.experts.assign(cluster=one.experts["expert"] % 2),
        figures=None,
    ).save(place / "two")
    return place / "two"


@pytest.fixture
def saved(drawn: Path, tmp_path: Path) -> Path:
    """The analysis, written in this place."""
    Analysis.load(drawn).save(tmp_path / "analysis")
    return tmp_path / "analysis"


@pytest.fixture
def tables_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the tables of which rows are read from now on."""
    names: set[str] = set()
    read = ParquetRows._read

    def noted(self: ParquetRows, *given: object) -> object:
        names.add(self.path.stem)
        return read(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ParquetRows, "_read", noted)
    return names


def test_the_verdict_takes_no_row_of_a_pair(saved: Path, tables_read: set[str]) -> None:
    analysis = Analysis.load(saved)
    starts, apart = analysis.verdict.starts, analysis.apart
    assert not LARGE & tables_read

    (saved / NOTE).unlink()
    without = Analysis.load(saved)
    assert without.verdict == analysis.verdict
    assert (without.verdict.starts, without.apart) == (starts, apart)
    assert tables_read >= LARGE
    assert starts is not None
    off = without.similarity.query("expert_i != expert_j")
    is_within = off["expert_i"] % 2 == off["expert_j"] % 2
    assert starts.within == pytest.approx(1 - off["one_minus_cos"][is_within].mean())
    assert starts.between == pytest.approx(1 - off["one_minus_cos"][~is_within].mean())
    assert apart == (off["one_minus_cos"].min(), off["one_minus_cos"].max())
    assert without.to_json() == analysis.to_json()


def another_time(directory: Path) -> None:
    os.utime(directory / "similarity.parquet", (1, 1))


def another_mode(directory: Path) -> None:
    (directory / "groups.parquet").chmod(0o600)


def another_file(directory: Path) -> None:
    file = directory / "spectra.parquet"
    shutil.copy2(file, directory / "copy")
    os.replace(directory / "copy", file)


def one_more(directory: Path) -> None:
    (directory / "more.parquet").touch()


def another_figure(directory: Path) -> None:
    note = json.loads((directory / NOTE).read_text())
    note["figures"]["apart"] = [0.0, 2.0]
    (directory / NOTE).write_text(json.dumps(note))


def another_form(directory: Path) -> None:
    (directory / NOTE).write_text("[]")


@pytest.mark.parametrize(
    "change",
    [another_time, another_mode, another_file, one_more, another_figure, another_form],
)
def test_after_any_change_all_rows_are_read(
    saved: Path, tables_read: set[str], change: Callable[[Path], None]
) -> None:
    wanted = Analysis.load(saved)
    assert not LARGE & tables_read
    change(saved)
    analysis = Analysis.load(saved)
    assert tables_read >= LARGE
    assert analysis.figures is None
    assert analysis.apart == wanted.apart
    assert analysis.verdict == wanted.verdict


def test_a_copy_is_read_whole(saved: Path, tmp_path: Path, tables_read: set[str]) -> None:
    Analysis.load(shutil.copytree(saved, tmp_path / "copy"))
    assert tables_read >= LARGE


def rot(file: Path) -> None:
    """Turn one bit of the last number of the last group of a table."""
    metadata = pq.read_metadata(file)
    numbers = metadata.row_group(metadata.num_row_groups - 1).column(metadata.num_columns - 1)
    content = bytearray(file.read_bytes())
    content[numbers.data_page_offset + numbers.total_compressed_size - 1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", sorted(LARGE))
def test_bits_that_rot_are_noticed_by_who_reads_them(
    saved: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives other bytes leaves the stamps as they are. The note goes, so that the next
    reader refuses the analysis as a whole."""
    rot(saved / f"{name}.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(WrittenNote, "is_of", lambda *_: True)
        analysis = Analysis.load(saved)
        with raises_saying(CheckpointError, f"{name}.parquet", "analyse again"):
            analysis.to_json()
    assert not (saved / NOTE).exists()
    with raises_saying(CheckpointError, f"{name}.parquet", "analyse again"):
        Analysis.load(saved)
