"""The Recipe page measures a calibration in the background, and says what one was measured on."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest
from support.gradient_calibrations import with_gradients
from support.recipe_pages import recipe_of
from support.studio_pages import on, opened

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.packed.open import open_checkpoint


def with_form(app: AppTest, checkpoint: Path) -> AppTest:
    """The Recipe page with the form open. While it is closed, no field may be drawn: a browser
    would forget what it starts with."""
    on(opened(app, checkpoint), "recipe")
    assert not [each for each in app.number_input if str(each.key).startswith("calibration_")]
    app.session_state["calibration_form"] = True
    return app.run()


def test_a_job_is_filed_with_texts_and_gradients(
    app: AppTest, mixtral_dir: Path, workspace: Workspace
) -> None:
    texts = [workspace.path / name for name in ("one.txt", "two.txt")]
    for text in texts:
        text.write_text("Some words to read.\n", encoding="utf-8")
    with_form(app, mixtral_dir)
    app.button(key="calibration_start").click().run()
    assert "text" in app.error[0].value
    app.text_area(key="calibration_texts").set_value("\n".join(map(str, texts))).run()
    app.toggle(key="calibration_gradients").set_value(True).run()
    app.toggle(key="calibration_others").set_value(True).run()
    app.toggle(key="calibration_each").set_value(True).run()
    app.button(key="calibration_start").click().run()
    assert not app.exception
    (job,) = JobStore(workspace.store_path).list(kind="calibrate")
    assert job.spec["text"] == [str(text) for text in texts]
    assert [job.spec[key] for key in ("gradients", "others", "each_expert")] == [True] * 3
    assert job.spec["checkpoint"] == str(mixtral_dir)


def test_a_text_outside_the_allowed_roots_is_refused(app: AppTest, mixtral_dir: Path) -> None:
    with_form(app, mixtral_dir)
    app.text_area(key="calibration_texts").set_value("/etc/passwd").run()
    app.button(key="calibration_start").click().run()
    assert app.error
    assert not app.exception


def test_a_finished_calibration_can_be_used(
    app: AppTest, mixtral_dir: Path, workspace: Workspace
) -> None:
    path = workspace.path / "c.safetensors"
    calibration = with_gradients(open_checkpoint(mixtral_dir), path)
    store, claims = JobStore(workspace.store_path), Claims(workspace.store_path, "somebody")
    spec = {"checkpoint": str(mixtral_dir), "text": "t.txt", "gradients": True}
    store.submit("calibrate", spec)
    claim = claims.claim()
    assert claim is not None
    result = {"path": str(path), "tokens": calibration.tokens, "dtype": "", "gradients": True}
    claim.complete(result)
    on(opened(app, mixtral_dir), "recipe")
    app.button(key="calibration_use").click().run()
    assert not app.exception
    assert recipe_of(app).calibration == path
    (said,) = (each.value for each in app.caption if "with gradients" in each.value)
    assert "too low" in said  # it was made before routers were measured
    with_gradients(open_checkpoint(mixtral_dir), workspace.path / "new", routers=True)
    field = next(item for item in app.text_input if item.label == "Calibration")
    field.set_value(str(workspace.path / "new")).run()
    (said,) = (each.value for each in app.caption if "with gradients" in each.value)
    assert "too low" not in said
