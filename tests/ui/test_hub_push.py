"""Pushing from the Export page: nobody is asked before the button; then the job does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.hub_server import TOKEN, HubServer, serving_hub
from support.studio_pages import on, words

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.jobs.kinds.export import ExportResult
from ders_core.jobs.kinds.push import PushResult
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.push import bytes_to_push
from ders_core.recipe import presets
from ders_core.units import bytes_text

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "me/small-moe"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def store(workspace: Workspace) -> JobStore:
    return JobStore(workspace.store_path)


@pytest.fixture
def exported(workspace: Workspace, store: JobStore, mixtral_dir: Path) -> Path:
    packed, out = workspace.path / "packed", workspace.exports / "small"
    compress(mixtral_dir, packed, presets()["lossless"])
    result = ExportResult.model_validate(export(packed, out).to_dict())
    store.submit("export", {"packed": str(packed), "out": str(out)})
    claim = Claims(workspace.store_path, "me").claim()
    assert claim is not None
    claim.complete(result.to_json())
    return out


def test_an_export_is_pushed_by_the_worker(
    app: AppTest, hub: HubServer, exported: Path, store: JobStore, work: Callable[[], None]
) -> None:
    on(app.run(), "export")
    button = app.button(key="push_start")
    assert button.label == f"Push {bytes_text(bytes_to_push(exported))} to {hub.host}"
    app.text_input(key="push_name").set_value(NAME).run()
    assert hub.asked == []
    app.button(key="push_start").click().run()
    assert hub.asked == []
    (job,) = store.list(kind="push")
    assert job.spec == {"directory": str(exported), "name": NAME, "private": True}
    app.button(key="push_start").click().run()
    assert "being pushed" in app.error[0].value
    assert len(store.list(kind="push")) == 1
    work()
    result = PushResult.of(store.get(job.id))
    assert result is not None, store.get(job.id).error
    assert hub.repos[NAME].private
    assert hub.repos[NAME].files["config.json"][0] == (exported / "config.json").read_bytes()
    on(app, "export")
    assert result.address in [code.value for code in app.code]
    assert "private" in words(app)
    for file in (path for path in store.path.parent.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in file.read_bytes(), file


def test_a_push_that_failed_is_resumed(
    app: AppTest, hub: HubServer, exported: Path, store: JobStore, work: Callable[[], None]
) -> None:
    hub.refuse[f"POST /api/models/{NAME}/commit"] = (507, "no room")
    on(app.run(), "export")
    app.text_input(key="push_name").set_value(NAME).run()
    app.checkbox(key="push_private").uncheck().run()
    app.button(key="push_start").click().run()
    work()
    (job,) = store.list(kind="push")
    assert job.state == "failed"
    on(app, "export")
    assert "no room" in app.error[0].value
    hub.refuse.clear()
    sent = list(hub.sent)
    app.button(key=f"resume_{job.id}").click().run()
    work()
    assert store.get(job.id).state == "done", store.get(job.id).error
    assert hub.sent == sent
    assert not hub.repos[NAME].private


def test_what_cannot_be_pushed_is_said_before_anything_is_filed(
    app: AppTest,
    hub: HubServer,
    exported: Path,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on(app.run(), "export")
    app.button(key="push_start").click().run()
    assert "OWNER/NAME" in app.error[0].value
    for missing in ("", " "):
        monkeypatch.setenv("HF_TOKEN", missing)
        on(app, "export")
        assert app.button(key="push_start").disabled
        assert "HF_TOKEN is not set" in words(app)
    with monkeypatch.context() as other:
        other.setenv("HF_ENDPOINT", "http://[::1")
        on(app, "export")
        assert "HF_ENDPOINT" in app.error[0].value
    (exported / "README.md").unlink()
    on(app, "export")
    assert "export" in app.error[0].value
    assert store.list(kind="push") == []
    assert hub.asked == []


def test_without_an_export_there_is_nothing_to_push(app: AppTest, hub: HubServer) -> None:
    on(app.run(), "export")
    assert "Push" not in words(app)
