"""The map of a model on the Redundancy page: its frame is around the group that is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.testing.v1 import AppTest
from support.studio_pages import on, opened

from ders_core.analysis import analyze
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint

PROJECTIONS = ("gate", "up", "down")


@pytest.fixture
def analysed(app: AppTest, workspace: Workspace, mixtral_dir: Path) -> AppTest:
    """The page of an analysed checkpoint."""
    checkpoint = open_checkpoint(mixtral_dir)
    analyze(checkpoint).save(workspace.analysis_dir(checkpoint.identity))
    return on(opened(app, mixtral_dir), "redundancy")


def maps(app: AppTest) -> list[tuple[str, tuple[int, str]]]:
    """Of every version of the map that is on the page, the last one at the end: its identity, and
    the layer and the projection in the frame."""
    found = []
    for chart in app.get("plotly_chart"):
        if "model_map" in chart.proto.id:
            (frame,) = json.loads(chart.proto.spec)["layout"]["shapes"]
            assert (frame["x1"] - frame["x0"], frame["y1"] - frame["y0"]) == (1, 1)
            column, row = (int(frame[axis] + 0.5) for axis in ("x0", "y0"))
            found.append((chart.proto.id, (row, PROJECTIONS[column])))
    return sorted(found, key=lambda each: int(each[0].rpartition("_")[2]))


def click(app: AppTest, layer: str, projection: str) -> None:
    """As the browser tells of a click on a cell of the map."""
    states = app._tree.get_widget_states()
    selection = {"points": [{"x": projection, "y": layer}], "point_indices": [0]}
    selection |= {"box": [], "lasso": []}
    state = WidgetState(id=maps(app)[-1][0], string_value=json.dumps({"selection": selection}))
    states.widgets.append(state)
    app._run(states)
    assert not app.exception


def test_the_frame_follows_the_boxes_and_clicks(analysed: AppTest) -> None:
    app = analysed
    assert [cell for _, cell in maps(app)] == [(0, "gate")]
    app.selectbox(key="red_layer").set_value(1).run()
    app.selectbox(key="red_projection").set_value("down").run()
    assert maps(app)[-1][1] == (1, "down")
    assert len(maps(app)) == 2  # the version before it stays until it is drawn

    click(app, "layer 0", "up")
    assert (app.selectbox(key="red_layer").value, app.selectbox(key="red_projection").value) == (
        0,
        "up",
    )
    assert (app.query_params["layer"], app.query_params["projection"]) == ("0", "up")
    assert maps(app)[-1][1] == (0, "up")

    click(app, "layer 7", "up")  # there is none
    assert app.selectbox(key="red_layer").value == 0
    app.selectbox(key="red_layer").set_value(1).run()  # a click of before does not come again
    assert maps(app)[-1][1] == (1, "up")


def test_a_tab_is_drawn_once_it_is_opened(analysed: AppTest) -> None:
    app = analysed
    in_tabs = {
        "Experts": "",
        "Deltas": "similarity_deltas",
        "Where they differ": "difference_energy",
    }
    for tab, key in in_tabs.items():
        app.session_state["red_tab"] = tab
        app.run()
        assert not app.exception
        keys = {chart.proto.id.rpartition("-")[2] for chart in app.get("plotly_chart")}
        assert keys & set(in_tabs.values()) == {key} - {""}
        assert "similarity" in keys  # its tab has what chooses the pair
