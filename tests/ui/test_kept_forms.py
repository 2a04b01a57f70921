"""What was typed into a form behind a button is still there when the form was closed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from support.page_inputs import change, inputs
from support.stored_results import RUN
from support.studio_pages import on, opened

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.recipe import presets

APP = Path(__file__).parents[2] / "app.py"
ALLOWED_ONCE = ("calibration_trust", "tune_pilot_trust")
"""Keys of what a person allows for one session only."""


def values(app: AppTest) -> dict[str, Any]:
    return {widget.key: widget.value for widget in inputs(app)}


def page_of(app: AppTest, page: str) -> dict[str, Any]:
    """The values of a page while its forms are closed; of Runs, with its only run selected."""
    if page == "runs":
        app.session_state["runs_table"] = {"selection": {"rows": [0], "columns": []}}
    return values(on(app, page))


def in_form(app: AppTest, form: str, outside: dict[str, Any]) -> dict[str, Any]:
    """The values of the form, open, beside those of the page."""
    app.session_state[form] = True
    app.run()
    assert not app.exception
    return {key: value for key, value in values(app).items() if key not in outside}


def fill(app: AppTest, form: str, outside: dict[str, Any]) -> dict[str, Any]:
    """Change every field of a form, those too that only then appear. Returns its values."""
    changed: set[str] = set()
    while left := in_form(app, form, outside).keys() - changed:
        key = min(left)
        widget = next(widget for widget in inputs(app) if widget.key == key)
        changed.add(key)
        if not widget.disabled:
            before = widget.value
            change(app, widget, "typed")
            assert in_form(app, form, outside).get(key, "hidden now") != before, key
    return in_form(app, form, outside)


@pytest.fixture
def run(workspace: Workspace, mixtral_dir: Path) -> int:
    """The number of a finished run."""
    store, recipe = JobStore(workspace.store_path), presets()["quantized-1bit"].to_yaml()
    job = store.submit("run", {"checkpoint": str(mixtral_dir), "recipe": recipe}, "one")
    claim = Claims(workspace.store_path, "somebody").claim()
    assert claim is not None
    claim.complete(RUN | {"packed": str(workspace.run_dir(job.id) / "packed")})
    return job.id


@pytest.mark.parametrize(
    ("page", "form"),
    [
        ("recipe", "calibration_form"),
        ("runs", "repair_{run}"),
        ("runs", "describe_{run}"),
        ("tune", "tune_pilot"),
    ],
)
def test_a_closed_form_keeps_what_was_typed(
    app: AppTest, mixtral_dir: Path, run: int, page: str, form: str
) -> None:
    form = form.format(run=run)
    opened(app, mixtral_dir)
    outside = page_of(app, page)
    filled = fill(app, form, outside)
    assert len(filled) >= 3
    app.session_state[form] = False
    assert values(app.run()).keys().isdisjoint(filled)
    on(app, "checkpoint")
    page_of(app, page)
    assert in_form(app, form, outside) == filled
    anew = AppTest.from_file(str(APP), default_timeout=60).run()
    page_of(anew, page)
    asked_again = {key: False for key in ALLOWED_ONCE if key in filled}
    assert in_form(anew, form, outside) == filled | asked_again
