"""How soon the studio's pages answer a click: a small model, and one of 94 layers of 128 experts.

Starts the real app on a checkpoint of headers and holes (94 × 128 experts of 14336 × 4096: 4 TB
that take no disk) with a saved analysis of every pair, and on one of 1 layer of 2 experts, the
baseline. Walks over every page in Chromium, clicks, and prints for each click the seconds until the
page is drawn and still again beside the goal, and the CPU seconds of the page's main thread in the
browser and of the server for it, which other work on the machine changes less. What is chosen in a
box is answered from the key that chooses it: that the box opens and is typed into is not counted.
Before the first click the browser rests for two seconds, as under a person's hand. A page that
shows an exception, or a message in the browser's console, ends the walk.

    python benchmarks/studio_walk.py [--layers 94] [--experts 128] [--repeats 3] [--pictures DIR]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import streamlit
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright
from startup import BROWSERS
from studio_load import DRAWN, FLAGS, PATIENCE, cpu_of, ready, studio
from support.large_analyses import save_drawn_analysis
from support.studio_process import Studio
from upcycled import make_holes

import ders_core
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint

GOAL = 0.5
"""Seconds in which a click must be answered."""

STILL = 0.4
"""Seconds without a change after which a page is still."""

REST = 2000
"""Milliseconds before the first click."""

WATCH = """
window.lastChange = performance.now();
new MutationObserver((changes) => {
    if (changes.some((change) => !change.target.closest("canvas")))
        window.lastChange = performance.now();
}).observe(document.documentElement, {childList: true, subtree: true, attributes: true});
"""
"""What stands in a canvas is never drawn: of a table it is the text for screen readers, which comes
a fifth of a second after the table."""
SINCE = "(performance.now() - window.lastChange) / 1000"

Act = Callable[[Page], None]


def type_into(label: str, option: str) -> Act:
    """Open a box by its label, and type what is to be chosen."""

    def act(page: Page) -> None:
        box = page.get_by_role("combobox", name=label).first
        box.click()
        box.press_sequentially(option)

    return act


def enter(page: Page) -> None:
    """Choose what was typed."""
    page.keyboard.press("Enter")


def chosen(label: str, option: str) -> tuple[Act, ...]:
    return type_into(label, option), enter


def link(name: str) -> Act:
    return lambda page: page.get_by_test_id("stTopNavLink").get_by_text(name, exact=True).click()


def press(name: str) -> Act:
    return lambda page: page.get_by_text(name, exact=True).first.click()


def click_map(page: Page) -> None:
    """The middle of the model's map."""
    page.locator(".st-key-model_map_live .nsewdrag:visible").first.click()


@dataclass(frozen=True)
class Click:
    """name: of a row. act: what is clicked. before: what is done before, which is not timed."""

    name: str
    act: Act
    before: tuple[Act, ...] = ()


def clicks(layers: int, experts: int) -> list[Click]:
    last, expert = str(layers - 1), f"E{experts - 1}"
    middle = str(layers // 2)
    return [
        Click("to Checkpoint", link("Checkpoint"), (link("Runs"),)),
        Click("to Redundancy", link("Redundancy")),
        Click("Redundancy: the map", click_map),
        Click("Redundancy: a layer", enter, (*chosen("Layer", middle), type_into("Layer", last))),
        Click("Redundancy: an expert", enter, (type_into("Expert", expert),)),
        Click("Redundancy: own range", press("This layer"), (press("All layers"),)),
        Click("Redundancy: ‖Δ‖/‖W‖", press("‖Δ‖ / ‖W_base‖"), (press("1 − cos of experts"),)),
        Click("to Spectra", link("Spectra")),
        Click("Spectra: a layer", enter, (*chosen("Layer", middle), type_into("Layer", last))),
        Click("to Recipe", link("Recipe")),
        Click("to Tune", link("Tune")),
        Click("to Runs", link("Runs")),
        Click("to Playground", link("Playground")),
        Click("to Export", link("Export")),
        Click("to Upcycle", link("Upcycle")),
    ]


@dataclass
class Times:
    """Of one click, a value for each walk: seconds until the page is still, CPU seconds of the
    page's main thread in the browser, and of the server."""

    seconds: list[float] = field(default_factory=list)
    browser: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def cpu_of_page(session: CDPSession) -> float:
    """CPU seconds of all tasks of the page's main thread so far."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))


def still(page: Page) -> float:
    """Wait until the page is drawn and nothing on it changes. Returns when it changed last."""
    while True:
        page.wait_for_selector(DRAWN, state="attached")
        since = float(page.evaluate(SINCE))
        if since >= STILL and page.locator("[data-stale=true]").count() == 0:
            return time.perf_counter() - since
        page.wait_for_timeout(50)


def walk(
    browser: Browser,
    app: Studio,
    server: psutil.Process,
    planned: list[Click],
    times: dict[str, Times],
    pictures: Path | None,
) -> None:
    """One walk, in a browser that knows nothing of the studio."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.request.get(app.door)  # the context has the cookie now
    context.add_init_script(f"document.addEventListener('DOMContentLoaded', () => {{{WATCH}}})")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    messages: list[str] = []
    page.on("console", lambda told: messages.append(told.text) if told.type == "error" else None)
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(app.address)
    ready(page)
    still(page)
    page.wait_for_timeout(REST)
    still(page)
    for click in planned:
        for act in click.before:
            act(page)
            still(page)
        before, before_page, begun = cpu_of(server), cpu_of_page(session), time.perf_counter()
        click.act(page)
        page.wait_for_timeout(100)  # the page hears of it
        ended = still(page)
        told = times.setdefault(click.name, Times())
        told.seconds.append(max(ended - begun, 0.0))
        told.browser.append(cpu_of_page(session) - before_page)
        told.cpu.append(cpu_of(server) - before)
        if pictures is not None:
            name = "".join(each if each.isalnum() else "-" for each in click.name)
            page.screenshot(path=str(pictures / f"{name}.png"))
        if page.get_by_test_id("stException").count() or messages:
            raise SystemExit(f"{click.name}: an exception on the page, or {messages}")
    context.close()


def walks(
    browser: Browser, place: Path, layers: int, experts: int, options: argparse.Namespace
) -> dict[str, Times]:
    """The times of every click, on a checkpoint of so many experts."""
    model, workspace = place / "moe", Workspace(place / "workspace")
    make_holes(model, layers, experts)
    opened = open_checkpoint(model)
    save_drawn_analysis(workspace.analysis_dir(opened.identity), opened, options.points)
    pictures: Path | None = options.pictures and options.pictures / f"{layers}x{experts}"
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    times: dict[str, Times] = {}
    planned = clicks(layers, experts)
    with studio(place, model) as (app, server):
        walk(browser, app, server, planned, {}, pictures)  # imports, and the first look
        for _ in range(options.repeats):
            walk(browser, app, server, planned, times, None)
    return times


def table(small: dict[str, Times], large: dict[str, Times]) -> Iterator[str]:
    heads = f"{'':28}{'seconds':>9}{'1 × 2':>8}{'goal':>7}"
    yield heads + "".join(f"{head:>9}{'1 × 2':>8}" for head in ("browser", "server"))
    for name, of_large in large.items():
        base = small[name]
        seconds, least = (statistics.median(each.seconds) for each in (of_large, base))
        page, least_page = (statistics.median(each.browser) for each in (of_large, base))
        cpu, least_cpu = (statistics.median(each.cpu) for each in (of_large, base))
        yield (
            f"{name:28}{seconds:9.2f}{least:8.2f}{GOAL:7.1f}{page:9.2f}{least_page:8.2f}"
            f"{cpu:9.2f}{least_cpu:8.2f}"
        )
    late = [name for name, of_large in large.items() if statistics.median(of_large.seconds) > GOAL]
    yield f"\n{len(large) - len(late)} of {len(large)} clicks within {GOAL} s" + (
        f"; later: {', '.join(late)}" if late else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=94)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--points", type=int, default=64, help="singular values of each expert")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=Path, help="a directory for pictures of each step")
    options = parser.parse_args()
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    print(
        f"ders-studio {ders_core.__version__}, streamlit {streamlit.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, {psutil.cpu_count()} cores\n"
        f"{options.layers} layers of {options.experts} experts beside 1 layer of 2 experts; "
        f"{options.points} singular values of each expert\n"
        f"other work on the machine at the start: {os.getloadavg()[0]:.1f} processes on average\n"
        f"seconds from a click until the page is drawn and still; browser, server: CPU seconds for "
        f"it; medians of {options.repeats}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        small = walks(browser, Path(place) / "small", 1, 2, options)
        large = walks(browser, Path(place) / "large", options.layers, options.experts, options)
        browser.close()
    print("\n".join(table(small, large)))


if __name__ == "__main__":
    main()
