"""A history that grows, is cut back, and is finished, as somebody who watches sees it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ders_core.upcycle.history import HISTORY, History, Measured, Moment, Watch, read_history


def moment(step: int, loss: float = 3.0) -> Moment:
    return Moment(step, loss, 1.0, 1e-4, 0.5, 900.0, 10**9, {0: (0.5, 0.5), 1: (0.25, 0.75)})


def alike(watch: Watch, out: Path) -> None:
    """What a watch has gathered is what a fresh reader finds."""
    seen, read = watch.tables(), read_history(out)
    for name in ("steps", "heldout", "loads"):
        pd.testing.assert_frame_equal(getattr(seen, name), getattr(read, name))


def test_a_watch_sees_what_a_reader_sees(tmp_path: Path) -> None:
    out, partial = tmp_path / "packed", tmp_path / "packed.partial"
    watch = Watch(out)
    assert watch.tables().steps.empty
    partial.mkdir()
    history = History(partial / HISTORY, 0)
    history.add(Measured(0, 40.0))
    assert watch.tables().heldout["heldout_perplexity"].tolist() == [40.0]
    for step in (1, 2, 3):
        history.add(moment(step))
        assert watch.tables().steps["step"].iloc[-1] == step
        alike(watch, out)
    assert watch.tables().loads["share"].tolist() == [0.5, 0.5, 0.25, 0.75] * 3
    with open(partial / HISTORY, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')  # half a line
    assert len(watch.tables().steps) == 3


def test_what_a_resumed_training_cuts_off_is_gone(tmp_path: Path) -> None:
    partial = tmp_path / "packed.partial"
    partial.mkdir()
    history = History(partial / HISTORY, 0)
    for step in (1, 2, 3):
        history.add(moment(step))
    watch = Watch(tmp_path / "packed")
    assert len(watch.tables().steps) == 3
    again = History(partial / HISTORY, 1)
    for step in (2, 3, 4):  # before the next look it is longer than it was
        again.add(moment(step, 2.0))
    assert watch.tables().steps["loss"].tolist() == [3.0, 2.0, 2.0, 2.0]
    alike(watch, tmp_path / "packed")
    partial.rename(tmp_path / "packed")
    alike(watch, tmp_path / "packed")
