"""A history that grows, is cut back, and is finished, as a reader that follows sees it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ders_core.upcycle.history import (
    HISTORY,
    HistoryReader,
    HistoryWriter,
    Measured,
    Moment,
    read_history,
)


def moment(step: int, loss: float = 3.0) -> Moment:
    return Moment(step, loss, 1.0, 1e-4, 0.5, 900.0, 10**9, {0: (0.5, 0.5), 1: (0.25, 0.75)})


def alike(reader: HistoryReader, out: Path) -> None:
    """What a reader has gathered is what a fresh one finds."""
    seen, read = reader.tables(), read_history(out)
    for name in ("steps", "heldout", "loads"):
        pd.testing.assert_frame_equal(getattr(seen, name), getattr(read, name))


def test_a_reader_that_follows_sees_what_a_fresh_one_sees(tmp_path: Path) -> None:
    out, partial = tmp_path / "packed", tmp_path / "packed.partial"
    reader = HistoryReader(out)
    assert reader.tables().steps.empty
    partial.mkdir()
    history = HistoryWriter(partial / HISTORY, 0)
    history.add_measurement(Measured(0, 40.0))
    assert reader.tables().heldout["heldout_perplexity"].tolist() == [40.0]
    for step in (1, 2, 3):
        history.add_step(moment(step))
        assert reader.tables().steps["step"].iloc[-1] == step
        alike(reader, out)
    assert reader.tables().loads["share"].tolist() == [0.5, 0.5, 0.25, 0.75] * 3
    with open(partial / HISTORY, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')  # half a line
    assert len(reader.tables().steps) == 3


def test_what_a_resumed_training_cuts_off_is_gone(tmp_path: Path) -> None:
    partial = tmp_path / "packed.partial"
    partial.mkdir()
    history = HistoryWriter(partial / HISTORY, 0)
    for step in (1, 2, 3):
        history.add_step(moment(step))
    reader = HistoryReader(tmp_path / "packed")
    assert len(reader.tables().steps) == 3
    again = HistoryWriter(partial / HISTORY, 1)
    for step in (2, 3, 4):  # before the next look it is longer than it was
        again.add_step(moment(step, 2.0))
    assert reader.tables().steps["loss"].tolist() == [3.0, 2.0, 2.0, 2.0]
    alike(reader, tmp_path / "packed")
    partial.rename(tmp_path / "packed")
    alike(reader, tmp_path / "packed")


def test_lines_that_a_disk_damaged_are_left_out(tmp_path: Path) -> None:
    partial = tmp_path / "packed.partial"
    partial.mkdir()
    HistoryWriter(partial / HISTORY, 0).add_step(moment(1))
    reader = HistoryReader(tmp_path / "packed")
    assert len(reader.tables().steps) == 1
    with open(partial / HISTORY, "ab") as file:
        file.write(bytes(40) + b'\n\xff{\n[2]\n{"step": "3"}\n')
    assert len(reader.tables().steps) == 1
    again = HistoryWriter(partial / HISTORY, 1)
    again.add_step(moment(2))
    assert read_history(tmp_path / "packed").steps["step"].tolist() == [1, 2]
    alike(reader, tmp_path / "packed")
