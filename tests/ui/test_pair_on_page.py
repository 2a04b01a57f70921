"""From the model's map to a pair to where it differs, and back by a link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from support.studio_pages import on, opened, words

from ders_core.analysis import analyze
from ders_core.analysis.pair_difference import pair_difference
from ders_core.errors import CheckpointError
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.ui import pair_difference as section
from ders_core.ui.calculator import calculate
from ders_core.units import share_text


@pytest.fixture
def analysed(workspace: Workspace, mixtral_dir: Path) -> Path:
    source = open_checkpoint(mixtral_dir)
    analyze(source).save(workspace.analysis_dir(source.identity))
    return mixtral_dir


def test_the_chosen_pair_is_mapped(app: AppTest, analysed: Path) -> None:
    on(opened(app, analysed), "redundancy")
    app.selectbox(key="red_layer").set_value(1).run()
    app.selectbox(key="red_projection").set_value("down").run()
    app.selectbox(key="pair_first").set_value(2).run()
    app.selectbox(key="pair_second").set_value(0).run()
    assert "cosine of their deltas −0." in words(app)
    assert "−1/(K−1) = −0.333" not in words(app)
    app.session_state["red_tab"] = "Deltas"
    assert "−1/(K−1) = −0.333" in words(app.run())
    group = open_checkpoint(analysed).group(1, "down")
    whole = group.read().double().numpy()
    ratio = np.linalg.norm(whole[2] - whole[0]) / max(map(np.linalg.norm, (whole[2], whole[0])))
    assert f"‖E2 − E0‖ is {share_text(float(ratio))} of the larger norm" in words(app)
    found = pair_difference(group, 2, 0)
    assert f"row {found.rows.argmax()} and column {found.columns.argmax()}" in words(app)
    linked = AppTest.from_file(app._script_path, default_timeout=60)
    for name, value in app.query_params.items():
        linked.query_params[name] = value
    on(linked.run(), "redundancy")
    assert "‖E2 − E0‖" in words(linked)
    app.selectbox(key="pair_second").set_value(2).run()
    assert "larger norm" not in words(app)


def test_a_pairs_map_stays_until_the_next_is_drawn(app: AppTest, analysed: Path) -> None:
    """In a browser the new one lies over the one before once it is drawn."""

    def versions() -> int:
        names = [chart.proto.id for chart in app.get("plotly_chart")]
        return sum("pair_blocks_" in name for name in names)

    on(opened(app, analysed), "redundancy")
    assert versions() == 1
    app.selectbox(key="pair_second").set_value(3).run()
    assert versions() == 2
    app.selectbox(key="red_layer").set_value(1).run()
    assert versions() == 2


def test_a_pair_is_read_once(app: AppTest, analysed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[object, ...]] = []

    def counted(*order: Any, **more: Any) -> Any:
        reads.append(order[3:])
        return calculate(*order, **more)

    monkeypatch.setattr(section, "calculate", counted)
    on(opened(app, analysed), "redundancy")
    app.run()
    app.run()
    assert reads == [(0, "gate", 0, 1)]


def test_nothing_is_drawn_of_two_that_are_the_same(
    app: AppTest, analysed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(section, "live_plot", lambda figure, key, *_, **__: drawn.append(key))
    on(opened(app, analysed), "redundancy")
    assert drawn == ["pair_blocks"]
    group = open_checkpoint(analysed).group(0, "gate")
    monkeypatch.setattr(section, "calculate", lambda *_, **__: pair_difference(group, 1, 1))
    app.selectbox(key="pair_second").set_value(2).run()
    assert "the same here, number for number" in words(app)
    assert drawn == ["pair_blocks"]


def test_what_cannot_be_read_is_said(
    app: AppTest, analysed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*order: object, **more: object) -> None:
        raise CheckpointError("the disk is gone")

    monkeypatch.setattr(section, "calculate", fail)
    on(opened(app, analysed), "redundancy")
    assert "the disk is gone" in app.error[0].value
