"""What the studio's pages cost with 10,000 runs and a checkpoint of 100,000 tensors.

Starts the real app on an empty workspace, the baseline, and on a full one with a saved analysis of
every pair of experts, and draws every page in Chromium: the time until it can be used, the server's
CPU for it, its memory, the browser's DOM nodes. Then many visitors come and go: what the server
holds open.

    python benchmarks/studio_load.py [--runs 10000] [--layers 64] [--experts 512] > FILE
    python benchmarks/studio_load.py --visitors-only [--visits 1000] > FILE
    python benchmarks/studio_load.py --without-browser > FILE

Without a browser only the server's CPU and memory are told, of visitors who open each page: figures
that other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import streamlit
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.large_analyses import save_drawn_analysis
from support.large_workspaces import fill_with_runs, make_many_tensors
from support.studio_process import Studio, processes_of, running_studio
from support.visitors import Visitor

import ders_core
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint

PAGES = (
    *("Checkpoint", "Redundancy", "Spectra", "Recipe", "Tune", "Runs", "Playground", "Export"),
    "Upcycle",
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DRAWN = "[data-testid=stApp][data-test-script-state=notRunning]"
PATIENCE = 120_000
"""Milliseconds."""

POINTS = 4
"""As many singular values as the tiny matrices have."""


@dataclass(frozen=True)
class Draw:
    """One page, opened by its address in a new browser: seconds until it can be used and CPU
    seconds of the server, and those once more for a browser that has been there and kept the
    studio's code; then DOM nodes, and megabytes resident of the server."""

    seconds: float
    cpu: float
    seconds_again: float
    cpu_again: float
    nodes: int
    memory: float


def describe(options: argparse.Namespace, tensors: int) -> str:
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"ders-studio {ders_core.__version__}, streamlit {streamlit.__version__}, "
        f"SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB\n"
        f"{options.runs} runs, of which {options.runs // 50} failed; {tensors} tensors: "
        f"{options.layers} layers of {options.experts} experts\n"
        f"other work on the machine at the start: {os.getloadavg()[0]:.1f} processes on average"
    )


@contextmanager
def studio(place: Path, checkpoint: Path | None) -> Iterator[tuple[Studio, psutil.Process]]:
    """The app and its server's process, with a checkpoint that is open already."""
    workspace = place / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    place_opened = None if checkpoint is None else str(checkpoint)
    opened: dict[str, Any] = {"checkpoint": place_opened, "recipe": None, "recent": []}
    (workspace / "studio.json").write_text(json.dumps(opened), encoding="utf-8")
    with running_studio(place, variables={"DERS_ROOTS": str(place.parent)}) as started:
        server = next(
            process
            for process in processes_of(started.workspace)
            if {"streamlit", "run"} <= set(process.cmdline())
        )
        yield started, server


def draw(browser: Browser, studio: Studio, server: psutil.Process, page: str) -> Draw:
    """Open a page in a tab of its own."""
    name = "" if page == "Checkpoint" else page.lower()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.request.get(studio.door)  # the context has the cookie now
    seconds, cpu, nodes = timed(context, studio, server, name)
    seconds_again, cpu_again, nodes = timed(context, studio, server, name)
    context.close()
    memory = server.memory_info().rss / 1e6
    return Draw(seconds, cpu, seconds_again, cpu_again, nodes, memory)


def timed(
    context: BrowserContext, studio: Studio, server: psutil.Process, name: str
) -> tuple[float, float, int]:
    """Seconds until a page can be used, CPU seconds of the server, and DOM nodes."""
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    before, begun = cpu_of(server), time.perf_counter()
    tab.goto(f"{studio.address}/{name}")
    ready(tab)
    seconds, cpu = time.perf_counter() - begun, cpu_of(server) - before
    nodes = tab.evaluate("document.querySelectorAll('*').length")
    tab.close()
    return seconds, cpu, nodes


def ready(tab: Page) -> None:
    """Wait until the script has run and its sidebar and its page are there."""
    for part in ("[data-testid=stSidebar] :text('Worker')", "[data-testid=stMain] :is(p, h3, h5)"):
        tab.wait_for_selector(f"{DRAWN} {part}", state="attached")  # the first may be hidden


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def draws(
    browser: Browser, place: Path, checkpoint: Path | None, repeats: int
) -> tuple[Draw, dict[str, Draw]]:
    """The first page of a server, which imports everything and opens the checkpoint; then of each
    page the quickest draw of several."""
    with studio(place, checkpoint) as (started, server):
        first = draw(browser, started, server, PAGES[0])
        pages = {}
        for page in PAGES:
            all_draws = [draw(browser, started, server, page) for _ in range(repeats)]
            pages[page] = min(all_draws, key=lambda each: each.seconds)
        return first, pages


def table(empty: dict[str, Draw], full: dict[str, Draw]) -> Iterator[str]:
    yield (
        f"{'':12}{'seconds':>9}{'empty':>8}{'CPU s':>8}{'empty':>8}"
        f"{'again':>9}{'empty':>8}{'CPU s':>8}{'empty':>8}"
        f"{'DOM nodes':>12}{'empty':>8}{'MB':>8}{'empty':>8}"
    )
    for page, of_full in full.items():
        base = empty[page]
        yield (
            f"{page:12}{of_full.seconds:9.2f}{base.seconds:8.2f}{of_full.cpu:8.2f}{base.cpu:8.2f}"
            f"{of_full.seconds_again:9.2f}{base.seconds_again:8.2f}"
            f"{of_full.cpu_again:8.2f}{base.cpu_again:8.2f}"
            f"{of_full.nodes:12}{base.nodes:8}{of_full.memory:8.0f}{base.memory:8.0f}"
        )


def descriptors(place: Path, checkpoint: Path, visits: int, forgotten: float) -> Iterator[str]:
    """What the server holds open while visitors come and go, and after the last one."""
    with studio(place, checkpoint) as (started, server):
        visitor = Visitor(started.door)
        visitor.look("runs")
        time.sleep(forgotten)
        counts = {0: server.num_fds()}
        for number in range(1, visits + 1):
            visitor.look("runs" if number % 2 else "")
            if number % (visits // 4) == 0:
                counts[number] = server.num_fds()
        time.sleep(forgotten)
        yield "files that the server holds open: " + ", ".join(
            f"{count} after {number} visits" for number, count in counts.items()
        )
        yield f"{server.num_fds()} when the last visitor had left for {forgotten:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--experts", type=int, default=512)
    parser.add_argument("--visits", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--visitors-only", action="store_true")
    parser.add_argument("--without-browser", action="store_true")
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    executable = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    place = Path(tempfile.mkdtemp(prefix="studio-load-", dir=options.place))
    try:
        checkpoint = place / "moe"
        tensors = make_many_tensors(checkpoint, options.layers, options.experts, shards=16)
        fill_with_runs(
            place / "full" / "workspace" / "ders.sqlite", options.runs, options.runs // 50
        )
        print(describe(options, tensors), flush=True)
        if options.without_browser:
            print_looks(options, place, checkpoint)
            return
        if not options.visitors_only:
            print_draws(options, place, checkpoint, executable)
        for line in descriptors(place / "full", checkpoint, options.visits, 30.0):
            print(line, flush=True)
    finally:
        shutil.rmtree(place)


def make_baseline(place: Path, checkpoint: Path) -> Path:
    """A tiny checkpoint for the empty workspace; and for the full one an analysis."""
    tiny = place / "tiny"
    make_many_tensors(tiny, 2, 4)
    opened = open_checkpoint(checkpoint)
    analysis = Workspace(place / "full" / "workspace").analysis_dir(opened.identity)
    save_drawn_analysis(analysis, opened, POINTS)
    pairs = sum(group.shape[0] ** 2 for group in opened.groups())
    print(f"an analysis of {pairs} pairs of experts, with {POINTS} singular values of each expert")
    return tiny


IDLE = 0.25
"""CPU seconds in 5 seconds that a server takes at most while nobody asks it for anything."""


@dataclass(frozen=True)
class Look:
    """A visitor's look at one page: CPU seconds of the server, then its megabytes resident."""

    cpu: float
    memory: float


def looks(place: Path, checkpoint: Path) -> Iterator[tuple[str, Look]]:
    """The server until it is idle, then the first look at every page, and the second."""
    with studio(place, checkpoint) as (started, server):
        before = -1.0
        while cpu_of(server) > before + IDLE:
            before = cpu_of(server)
            time.sleep(5)
        yield "start, and imports ahead", Look(cpu_of(server), server.memory_info().rss / 1e6)
        for again in ("", ", again"):
            for page in PAGES:
                before = cpu_of(server)
                Visitor(started.door).look("" if page == PAGES[0] else page.lower())
                yield (
                    f"{page}{again}",
                    Look(cpu_of(server) - before, server.memory_info().rss / 1e6),
                )


def print_looks(options: argparse.Namespace, place: Path, checkpoint: Path) -> None:
    """The server's CPU and memory, of the full workspace and the empty one."""
    tiny = make_baseline(place, checkpoint)
    print(
        "CPU seconds of the server for one look at a page, and megabytes resident; empty: no run, "
        f"no analysis, a small checkpoint\n\n{'':26}{'CPU s':>8}{'empty':>8}{'MB':>8}{'empty':>8}",
        flush=True,
    )
    for full, empty in zip(
        looks(place / "full", checkpoint), looks(place / "empty", tiny), strict=True
    ):
        (page, of_full), (_, of_empty) = full, empty
        print(
            f"{page:26}{of_full.cpu:8.2f}{of_empty.cpu:8.2f}"
            f"{of_full.memory:8.0f}{of_empty.memory:8.0f}",
            flush=True,
        )


def print_draws(
    options: argparse.Namespace, place: Path, checkpoint: Path, executable: str | None
) -> None:
    """The table of pages."""
    tiny = make_baseline(place, checkpoint)
    print(
        f"seconds from the address to a page that can be used, the quickest of {options.repeats}; "
        "again: by a browser that kept the studio's code; MB: resident, of the server; empty: no "
        "run, no analysis, 59 tensors\n",
        flush=True,
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        first_empty, empty = draws(browser, place / "empty", tiny, options.repeats)
        first, full = draws(browser, place / "full", checkpoint, options.repeats)
        browser.close()
    for line in table({"first": first_empty, **empty}, {"first": first, **full}):
        print(line, flush=True)
    print("\nfirst: after the start of the server, imports and the opening of the files included")


if __name__ == "__main__":
    main()
