"""The pictures of the studio in docs/: the demo, compressed and asked, in both themes.

Starts the real app on an empty workspace, opens the demo, runs a recipe and a question in the
worker, and takes pictures in Chromium. Takes a minute or two.

    python benchmarks/screenshots.py [--out docs]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.browsing import chromium
from support.job_waits import wait_for_job
from support.studio_process import Studio, running_studio

from ders_core.demo.result import MOE
from ders_core.jobs import Workspace
from ders_core.recipe import presets

WIDTH, HEIGHT = 1280, 820
RECIPE = "quantized-1bit"
PROMPT = "def open(self, path):\n    "


@dataclass(frozen=True)
class Shot:
    """page: its address. heading: what the picture begins with; shown: a text to wait for."""

    page: str
    heading: str
    shown: str


SHOTS = (
    Shot("redundancy", "Redundancy", "Colour of the map"),
    Shot("playground", "Asked", "A marked token"),
)


def prepare(studio: Studio, browser: Browser) -> None:
    """Open the demo, compress it, and ask both."""
    page = browser.new_page()
    page.goto(studio.door)
    page.get_by_role("button", name="Try the demo").click()
    expect(page.get_by_text("Colour of the map").first).to_be_visible()
    page.close()
    original = Workspace(studio.workspace).demo / MOE
    run = {"checkpoint": str(original), "recipe": presets()[RECIPE].to_yaml(), "name": RECIPE}
    studio.store.submit("run", run)
    result = wait_for_job(studio, "run").result
    assert result is not None, "the run is done"
    question = {"packed": result["packed"], "original": str(original), "name": RECIPE}
    studio.store.submit("ask", question | {"prompt": PROMPT, "max_tokens": 96})
    wait_for_job(studio, "ask")


def picture(page: Page, studio: Studio, shot: Shot) -> bytes:
    """A PNG of the window once the page is drawn, from `heading` on."""
    page.goto(f"{studio.address}/{shot.page}")
    expect(page.get_by_text(shot.shown).first).to_be_visible()
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning")
    expect(page.locator("[data-stale=true]")).to_have_count(0)
    page.get_by_text(shot.heading, exact=True).last.evaluate(
        "one => one.scrollIntoView({block: 'start'})"
    )
    page.wait_for_timeout(1500)  # plots fade in
    return page.screenshot()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    out: Path = parser.parse_args().out
    with (
        tempfile.TemporaryDirectory() as place,
        running_studio(Path(place)) as studio,
        chromium() as browser,
    ):
        prepare(studio, browser)
        for theme in ("light", "dark"):
            context = browser.new_context(
                color_scheme="dark" if theme == "dark" else "light",
                viewport={"width": WIDTH, "height": HEIGHT},
            )
            assert context.request.get(studio.door).ok, "the context has the cookie now"
            page = context.new_page()
            for shot in SHOTS:
                file = out / f"{shot.page}-{theme}.png"
                file.write_bytes(picture(page, studio, shot))
                print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")
            context.close()


if __name__ == "__main__":
    main()
