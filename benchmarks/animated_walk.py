"""A walk through the studio as a moving picture of half a minute, docs/walk.webp.

Starts the real app on an empty workspace and follows the pages as a visitor does: demo, similarity,
spectra, recipe, run, question. The run and the question are waited for, and not shown.

    python benchmarks/animated_walk.py [--out docs/walk.webp]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.browsing import chromium, type_into
from support.job_waits import wait_for_job
from support.studio_process import Studio, running_studio

WINDOW = (1280, 800)
PICTURE = (960, 600)
SHOWN = 1200
"""Milliseconds of each frame; the last one of a page is shown twice as long."""

QUALITY = 70
RECIPE = "quantized-2bit"
PROMPT = "def open(self, path):\n    "

POINTER = """
([x, y]) => {
    const ring = document.createElement("div");
    ring.id = "pointer";
    ring.style.cssText = `position: fixed; left: ${x - 16}px; top: ${y - 16}px; width: 32px;
        height: 32px; border: 4px solid #e4572e; border-radius: 50%; z-index: 1000000;
        pointer-events: none`;
    document.body.append(ring);
}
"""
"""A ring around what is pressed next."""

NO_POINTER = "document.getElementById('pointer')?.remove()"


class Film:
    """Frames, with the milliseconds that each is shown."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.durations: list[int] = []

    def frame(self, milliseconds: int = SHOWN) -> None:
        """What the window shows when nothing moves."""
        app = self.page.get_by_test_id("stApp")
        expect(app).to_have_attribute("data-test-script-state", "notRunning")
        expect(self.page.locator("[data-stale=true]")).to_have_count(0)
        self.page.mouse.move(0, 0)  # plots show their buttons under the mouse
        self.page.wait_for_timeout(1200)  # plots fade in
        self.frame_at_once(milliseconds)

    def frame_at_once(self, milliseconds: int = SHOWN) -> None:
        """What the window shows now."""
        taken = Image.open(BytesIO(self.page.screenshot())).convert("RGB")
        self.frames.append(taken.resize(PICTURE, Image.Resampling.LANCZOS))
        self.durations.append(milliseconds)

    def press(self, what: Locator) -> None:
        """Show where, then press it."""
        what.scroll_into_view_if_needed()
        self.page.wait_for_timeout(300)
        box = what.bounding_box()
        assert box is not None, "what is pressed can be seen"
        self.page.evaluate(POINTER, [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
        self.frame_at_once(SHOWN // 2)
        self.page.evaluate(NO_POINTER)
        what.click(delay=100)

    def go(self, name: str) -> None:
        self.press(self.page.get_by_test_id("stTopNavLink").get_by_text(name, exact=True))

    def scroll_to(self, text: str) -> None:
        self.page.get_by_text(text, exact=True).last.evaluate(
            "one => one.scrollIntoView({block: 'start'})"
        )

    def save(self, file: Path) -> None:
        first, *others = self.frames
        first.save(
            file,
            save_all=True,
            append_images=others,
            duration=self.durations,
            loop=0,
            quality=QUALITY,
            method=6,
        )


def open_demo(film: Film, studio: Studio) -> None:
    film.page.goto(studio.address)
    expect(film.page.get_by_text("Which experts repeat themselves?")).to_be_visible()
    film.frame()
    film.press(film.page.get_by_role("button", name="Try the demo"))
    expect(film.page.get_by_text("Colour of the map").first).to_be_visible()
    film.frame(2 * SHOWN)


def look_at_redundancy(film: Film, studio: Studio) -> None:
    film.press(film.page.locator(".st-key-model_map_live .nsewdrag:visible").first)
    film.frame()
    film.scroll_to("Colour of the map")
    film.frame(2 * SHOWN)


def look_at_spectra(film: Film, studio: Studio) -> None:
    film.go("Spectra")
    expect(film.page.get_by_text("of this layer's delta energy")).to_be_visible()
    film.frame(2 * SHOWN)


def choose_recipe(film: Film, studio: Studio) -> None:
    film.go("Recipe")
    film.page.get_by_text("Start from a preset").click()
    card = film.page.locator(f".st-key-preset_{RECIPE} button")
    expect(card).to_be_visible()
    film.frame()
    film.press(card)
    sidebar = film.page.get_by_test_id("stSidebar")
    expect(sidebar.get_by_text(RECIPE)).to_be_visible()
    film.scroll_to("Recipe")
    film.frame(2 * SHOWN)


def run(film: Film, studio: Studio) -> None:
    film.go("Runs")
    type_into(film.page.get_by_role("spinbutton", name="Tokens"), "2048")
    film.press(film.page.get_by_role("button", name="Start"))
    expect(film.page.get_by_test_id("stMain").get_by_test_id("stProgress").first).to_be_visible()
    film.page.wait_for_timeout(1500)
    film.frame_at_once()
    wait_for_job(studio, "run")
    expect(film.page.get_by_text("Finished runs")).to_be_visible()
    film.scroll_to("Finished runs")
    film.frame(2 * SHOWN)


def ask(film: Film, studio: Studio) -> None:
    film.go("Playground")
    type_into(film.page.get_by_role("textbox", name="Prompt"), PROMPT)
    film.press(film.page.get_by_role("button", name="Ask"))
    wait_for_job(studio, "ask")
    expect(film.page.get_by_text("A marked token").first).to_be_visible()
    film.scroll_to("Asked")
    film.frame(3 * SHOWN)


def finish(film: Film, studio: Studio) -> None:
    film.go("Export")
    expect(film.page.get_by_text("Packed DeRS checkpoint").first).to_be_visible()
    film.frame(3 * SHOWN)


SCENES: tuple[Callable[[Film, Studio], None], ...] = (
    open_demo,
    look_at_redundancy,
    look_at_spectra,
    choose_recipe,
    run,
    ask,
    finish,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    docs = Path(__file__).parents[1] / "docs"
    parser.add_argument("--out", type=Path, default=docs / "walk.webp")
    out: Path = parser.parse_args().out
    width, height = WINDOW
    with (
        tempfile.TemporaryDirectory() as place,
        running_studio(Path(place)) as studio,
        chromium() as browser,
    ):
        context = browser.new_context(viewport={"width": width, "height": height})
        assert context.request.get(studio.door).ok, "the context has the cookie now"
        film = Film(context.new_page())
        for scene in SCENES:
            scene(film, studio)
        context.close()
    film.save(out)
    seconds, size = sum(film.durations) / 1000, out.stat().st_size / 1000
    print(f"{out.name}: {len(film.frames)} frames, {seconds:.0f} s, {size:.0f} kB")


if __name__ == "__main__":
    main()
