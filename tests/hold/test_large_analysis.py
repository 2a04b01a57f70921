"""Pages of an analysis that is large: they read the rows of the group that they show."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest
from support.large_analyses import DrawnPairs, DrawnSpectra, save_drawn_analysis
from support.large_workspaces import make_many_tensors
from support.messages import raises_saying
from support.studio_pages import on, opened, words

from ders_core.analysis import Analysis
from ders_core.analysis.group_table import TableInFile
from ders_core.analysis.parquet_rows import ParquetRows
from ders_core.analysis.written_note import WrittenNote
from ders_core.checkpoint import Checkpoint
from ders_core.errors import CheckpointError
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint

LAYERS, EXPERTS, POINTS = 5, 40, 3
PAIRS = EXPERTS**2


@pytest.fixture
def large(tmp_path: Path) -> Checkpoint:
    make_many_tensors(tmp_path / "large", LAYERS, EXPERTS)
    return open_checkpoint(tmp_path / "large")


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each reading of a file of pairs or spectra gave."""
    counts: list[int] = []
    rows = ParquetRows.rows

    def counted(self: ParquetRows, *given: object) -> pd.DataFrame:
        table = rows(self, *given)  # type: ignore[arg-type]
        if self.path.stem in ("similarity", "spectra"):
            counts.append(len(table))
        return table

    monkeypatch.setattr(ParquetRows, "rows", counted)
    return counts


def test_a_page_reads_the_group_that_it_shows(
    app: AppTest, workspace: Workspace, large: Checkpoint, rows_read: list[int]
) -> None:
    save_drawn_analysis(workspace.analysis_dir(large.identity), large, POINTS)
    opened(app, large.path)
    for page in ("redundancy", "spectra", "recipe"):
        on(app, page)  # the first draw looks at every group once, one after another
        assert max(rows_read, default=0) <= PAIRS
        rows_read.clear()
        on(app, page)
        assert sum(rows_read) <= 4 * PAIRS, page
        assert "not analysed" not in words(app)
    on(app, "redundancy")
    rows_read.clear()
    app.selectbox(key="red_layer").set_value(4).run()
    assert not app.exception
    assert 0 < sum(rows_read) <= 4 * PAIRS


def test_rows_that_rot_on_the_disk_are_made_again(
    app: AppTest, workspace: Workspace, large: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives other bytes leaves a file's stamps as they are: who reads them first is
    told in a sentence, and the page offers another analysis from then on."""
    directory = workspace.analysis_dir(large.identity)
    save_drawn_analysis(directory, large, POINTS)
    file = directory / "similarity.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # among the numbers of a group
    file.write_bytes(content)
    monkeypatch.setattr(WrittenNote, "is_of", lambda *_: True)
    opened(app, large.path)
    assert "not analysed" not in words(on(app, "redundancy"))
    with raises_saying(CheckpointError, "similarity.parquet", "analyse again"):
        assert len(Analysis.load(directory).similarity) > 0
    assert "not analysed" in words(on(app, "redundancy"))
    assert "analyse" in {button.key for button in app.button}


def test_what_is_read_of_a_group_is_what_was_saved(tmp_path: Path, large: Checkpoint) -> None:
    save_drawn_analysis(tmp_path / "analysis", large, POINTS)
    saved = Analysis.load(tmp_path / "analysis")
    pairs, spectra = DrawnPairs(large.groups()), DrawnSpectra(large.groups(), POINTS)
    for group in large.groups():
        pd.testing.assert_frame_equal(saved.pairs.of_group(*group.key), pairs.of_group(*group.key))
        pd.testing.assert_frame_equal(
            saved.curves.of_group(*group.key), spectra.of_group(*group.key)
        )
    off = saved.similarity.query("expert_i != expert_j")["one_minus_cos"]
    assert saved.apart == (off.min(), off.max())
    assert saved.pairs.of_group(99, "up").empty


def test_row_groups_may_lie_across_groups(tmp_path: Path, large: Checkpoint) -> None:
    """As an earlier version wrote them: so many rows each, whatever they are of."""
    save_drawn_analysis(tmp_path / "analysis", large, POINTS)
    wanted = Analysis.load(tmp_path / "analysis")
    earlier = Path(shutil.copytree(tmp_path / "analysis", tmp_path / "earlier"))
    for name in ("similarity", "spectra"):
        file = earlier / f"{name}.parquet"
        pd.read_parquet(file).to_parquet(file, index=False, row_group_size=PAIRS * 7 // 3)
    saved = Analysis.load(earlier)
    for key in wanted.group_keys():
        for name, rows in saved.rows_of(*key).items():
            pd.testing.assert_frame_equal(rows, wanted.rows_of(*key)[name])


def test_another_analysis_in_its_place_changes_nothing(tmp_path: Path, large: Checkpoint) -> None:
    save_drawn_analysis(tmp_path / "analysis", large, POINTS)
    before = Analysis.load(tmp_path / "analysis")
    assert isinstance(before.pairs, TableInFile)
    wanted = before.pairs.of_group(3, "up")
    make_many_tensors(tmp_path / "other", 1, 2)
    save_drawn_analysis(tmp_path / "analysis", open_checkpoint(tmp_path / "other"), 1)
    pd.testing.assert_frame_equal(before.pairs.of_group(3, "up"), wanted)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("similarity", lambda table: table.assign(expert_j=table["expert_j"][::-1].to_numpy())),
        ("similarity", lambda table: table.assign(layer=table["layer"] + 1)),
        (
            "similarity",
            lambda table: table.assign(expert_i=table["expert_i"].where(lambda i: i > 0)),
        ),
        ("spectra", lambda table: table.assign(expert=EXPERTS)),
        ("spectra", lambda table: table.assign(expert=-1)),
        ("spectra", lambda table: pd.concat([table, table])),
    ],
)
def test_rows_of_other_groups_are_refused(
    tmp_path: Path, large: Checkpoint, name: str, change: object
) -> None:
    save_drawn_analysis(tmp_path / "analysis", large, POINTS)
    file = tmp_path / "analysis" / f"{name}.parquet"
    change(pd.read_parquet(file)).to_parquet(file, index=False)  # type: ignore[operator]
    with raises_saying(CheckpointError, str(tmp_path / "analysis"), "analyse again"):
        Analysis.load(tmp_path / "analysis")


def test_a_byte_of_the_numbers_that_cannot_be_read_is_noticed(
    tmp_path: Path, large: Checkpoint
) -> None:
    save_drawn_analysis(tmp_path / "analysis", large, POINTS)
    file = tmp_path / "analysis" / "similarity.parquet"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2  # among compressed values
    content[middle : middle + 400] = bytes(400)
    file.write_bytes(content)
    with raises_saying(CheckpointError, "similarity.parquet", "analyse again"):
        Analysis.load(tmp_path / "analysis")


def open_below(directory: Path) -> int:
    """How many files below it this process has open."""
    count = 0
    for entry in os.scandir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile: that of the listing, for one
            count += os.readlink(entry.path).startswith(f"{directory}/")
    return count


def test_an_analysis_that_nobody_uses_is_closed(tmp_path: Path, large: Checkpoint) -> None:
    save_drawn_analysis(tmp_path / "analysis", large, POINTS)
    saved = Analysis.load(tmp_path / "analysis")
    assert len(saved.pairs.of_group(0, "up")) == PAIRS
    assert open_below(tmp_path) == 2
    del saved
    assert open_below(tmp_path) == 0
