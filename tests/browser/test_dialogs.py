"""The dialog that deletes a run, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, expect
from support.browsing import drawn
from support.large_workspaces import fill_with_runs
from support.studio_process import Studio

from ders_core.jobs import Which
from ders_core.jobs.workspace import Workspace
from ders_core.units import bytes_text

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]


def test_a_run_is_deleted_after_its_dialog(
    visit: Callable[..., BrowserContext], studio: Studio
) -> None:
    workspace = Workspace(studio.workspace)
    fill_with_runs(workspace.store_path, 2)
    runs = studio.store.page(Which(("run",)))
    kept, doomed = (next(job for job in runs if job.title == f"run {n}") for n in (1, 2))
    file = workspace.run_dir(doomed.id) / "packed" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(123_000))
    page = visit(viewport={"width": 1280, "height": 900}).new_page()
    drawn(page, f"{studio.address}/runs?compared={doomed.id}")
    delete = page.locator(f".st-key-delete_{doomed.id} button")

    delete.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text(f"frees {bytes_text(123_000)}")).to_be_visible()
    expect(dialog.get_by_text("run 2")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert studio.store.get(doomed.id).title == "run 2"
    assert file.is_file()

    delete.click()
    dialog.get_by_role("button", name="Delete").click()
    expect(dialog).to_have_count(0)
    expect(delete).to_have_count(0)
    expect(page).not_to_have_url(re.compile(f"compared={doomed.id}"))
    left = {job.id for job in studio.store.page(Which(("run",)))}
    assert kept.id in left
    assert doomed.id not in left
    assert not file.exists()
