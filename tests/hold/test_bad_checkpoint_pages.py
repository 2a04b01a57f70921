"""One bad checkpoint is one sentence on the pages that need it, also after a restart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import streamlit as st
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from streamlit.testing.v1 import AppTest
from support.studio_pages import on, opened, words

from ders_core.analysis import Verdict
from ders_core.analysis.summary import Summary, summarize
from ders_core.checkpoint import Checkpoint
from ders_core.jobs import JobStore, Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.recipe import presets

ROOT = Path(__file__).parents[2]
NEEDING = ("redundancy", "spectra", "recipe", "runs")

Damage = Callable[[Path, pytest.MonkeyPatch], None]


def surrogate_in_a_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor's name holds half a character: valid JSON, but no text."""
    for file in checkpoint.glob("*.safetensors"):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        name = next(name for name in header if name.endswith("norm.weight"))
        header[f"{name}\ud800"] = header.pop(name)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def no_rights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder cannot be read any more; root can read any, so the refusal is made."""
    real = Path.is_dir

    def is_dir(path: Path) -> bool:
        if path == checkpoint:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)


def unexpected(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has a fault of its own."""

    def fails(path: str) -> Checkpoint:
        if Path(path) == checkpoint:
            raise RecursionError("maximum recursion depth exceeded")
        return open_checkpoint(path)

    monkeypatch.setattr("ders_core.ui.reads.open_checkpoint", fails)


def faulty_summary(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens, and cannot be read further."""

    def fails(source: Checkpoint, verdict: Verdict | None) -> Summary:
        if source.path == checkpoint:
            raise ZeroDivisionError("division by zero")
        return summarize(source, verdict)

    monkeypatch.setattr("ders_core.ui.reads.summarize", fails)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("DERS_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("DERS_ROOTS", str(tmp_path))
    monkeypatch.setattr("ders_core.ui.job_progress.ensure_worker", lambda workspace: None)
    return Workspace(tmp_path / "workspace")


def started() -> AppTest:
    """The app after a start: nothing is remembered."""
    st.cache_resource.clear()
    st.cache_data.clear()
    return AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()


@pytest.mark.parametrize(
    "damage", [surrogate_in_a_name, no_rights, unexpected, faulty_summary], ids=lambda d: d.__name__
)
def test_a_bad_checkpoint_does_not_take_the_studio_along(
    workspace: Workspace,
    tmp_path: Path,
    mixtral_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Damage,
) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    for place in (bad, good):
        shutil.copytree(mixtral_dir, place)
    store = JobStore(workspace.store_path)
    spec = {"checkpoint": str(good), "recipe": presets()["quantized-2bit"].to_yaml()}
    store.cancel(store.submit("run", spec, "an earlier run").id)
    opened(started(), bad)
    damage(bad, monkeypatch)
    app = started()
    assert not app.exception
    assert len(app.error) == 1
    for page in NEEDING if damage is surrogate_in_a_name else ():
        on(app, page)
        assert len(app.error) <= 1
        assert "\n" not in "".join(error.value for error in app.error)
    assert "an earlier run" in words(on(app, "runs"))
    for page in ("export", "upcycle") if damage is surrogate_in_a_name else ():
        assert not on(app, page).error
    on(app, "checkpoint")
    assert len(app.error) == 1
    opened(app, good)
    assert not app.error
    assert "4 experts × 2 layers" in words(app)
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.mark.parametrize("length", [300, 5000])
def test_a_very_long_path_is_one_sentence(
    workspace: Workspace, tmp_path: Path, length: int
) -> None:
    app = started()
    for pressed in (False, True):
        states = app._tree.get_widget_states()
        field, button = app.selectbox(key="open_path"), app.button(key="open")
        kept = [state for state in states.widgets if state.id not in (field.id, button.id)]
        typed = WidgetState(id=field.id, string_value=str(tmp_path / ("x" * length)))
        press = WidgetState(id=button.id, trigger_value=pressed)
        app._run(WidgetStates(widgets=[*kept, typed, press]))
    assert not app.exception
    assert len(app.error) == 1
    assert "path" in app.error[0].value
    assert len(app.error[0].value) < 1000


def test_names_that_no_browser_can_be_told_are_not_offered(
    workspace: Workspace, tmp_path: Path, mixtral_dir: Path
) -> None:
    for name in (b"half\xff", "turned\u202e", "broken\nline"):
        place = tmp_path / (
            name if isinstance(name, str) else name.decode(errors="surrogateescape")
        )
        shutil.copytree(mixtral_dir, place)
    shutil.copytree(mixtral_dir, tmp_path / "good")
    app = started()
    assert not app.exception
    options = app.selectbox(key="open_path").options
    assert str(tmp_path / "good") in options
    assert all(option.isprintable() for option in options)
