"""How long commands and the studio take to start, beside Python alone and beside importing torch.

Commands run on a header of 90 GB (32 layers of Mixtral's shapes, whose weights are holes in the
files) and on the shipped demo, packed. Each is the median of several runs, in turns with the
others, after one that is not counted. Of the studio: the first page of a server that has just
started, the same again, and *Try the demo* until its plots are there, in a fresh workspace each: of
that also the CPU seconds of the server and of the process beside it that makes the demo.

    python benchmarks/startup.py [--runs 7] [--without-browser] > FILE
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
from upcycled import make_holes

import ders_core
from ders_core.demo.unpack import TRAINED

LAYERS = 32
NOTHING, TORCH = "python -c pass", "python -c 'import torch'"
STUDIOS = 3
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CALCULATOR = "ders_core.ui.calculator"
PLOTS = 4
"""That the Redundancy page shows at once."""


def commands(model: Path, packed: Path) -> dict[str, list[str]]:
    python, ders = [sys.executable, "-c"], [sys.executable, "-m", "ders_core"]
    return {
        NOTHING: [*python, "pass"],
        TORCH: [*python, "import torch"],
        "import ders_core, every public name": [*python, "from ders_core import *"],
        "ders --help": [*ders, "--help"],
        "ders info, 90 GB": [*ders, "info", str(model)],
        "ders plan, 90 GB": [*ders, "plan", str(model), "--recipe", "quantized-2bit"],
        "ders verify, 5 MB packed": [*ders, "verify", str(packed)],
        "ders info, packed": [*ders, "info", str(packed)],
        "ders info --verdict, packed": [*ders, "info", str(packed), "--verdict"],
    }


def once(command: list[str]) -> tuple[float, float]:
    """Seconds, and processor seconds."""
    environment = os.environ.copy()
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, began = os.times(), time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system
    return seconds, used - before.children_user - before.children_system


def table(timed: dict[str, list[tuple[float, float]]]) -> Iterator[str]:
    medians = {
        name: tuple(map(statistics.median, zip(*runs, strict=True))) for name, runs in timed.items()
    }
    yield f"{'':38}{'seconds':>9}{'CPU s':>8}{'× nothing':>11}{'× torch':>9}"
    for name, (seconds, used) in medians.items():
        ratios = (seconds / medians[NOTHING][0], seconds / medians[TORCH][0])
        yield f"{name:38}{seconds:9.2f}{used:8.2f}{ratios[0]:11.1f}{ratios[1]:9.2f}"


def studios(torch_seconds: float) -> Iterator[str]:
    from playwright.sync_api import sync_playwright
    from studio_load import DRAWN, FLAGS, PATIENCE, cpu_of, ready, studio
    from support.studio_process import processes_of

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    stages: dict[str, list[float]] = {"first page": [], "again": [], "demo: click to plots": []}
    memory, used = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        for _ in range(STUDIOS):
            with tempfile.TemporaryDirectory() as place, studio(Path(place), None) as (app, server):
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                context.request.get(app.door)  # the context has the cookie now
                for stage in ("first page", "again"):
                    tab, began = context.new_page(), time.perf_counter()
                    tab.set_default_timeout(PATIENCE)
                    tab.goto(app.address)
                    ready(tab)
                    stages[stage].append(time.perf_counter() - began)
                began, before = time.perf_counter(), cpu_of(server)
                tab.get_by_role("button", name="Try the demo").click()
                plots = f"{DRAWN} .js-plotly-plot .main-svg >> nth={PLOTS - 1}"
                tab.wait_for_selector(plots, state="attached")
                stages["demo: click to plots"].append(time.perf_counter() - began)
                beside = [
                    each for each in processes_of(app.workspace) if CALCULATOR in each.cmdline()
                ]
                used.append((cpu_of(server) - before, sum(map(cpu_of, beside))))
                memory.append(server.memory_info().rss / 1e6)
                context.close()
        browser.close()
    for stage, seconds in stages.items():
        median = statistics.median(seconds)
        yield f"studio, {stage:30}{median:9.2f}{median / torch_seconds:28.2f}"
    of_server, of_beside = map(statistics.median, zip(*used, strict=True))
    yield f"CPU seconds from the click on: {of_server:.2f} of the server"
    yield f"CPU seconds of the process beside it: {of_beside:.2f}"
    yield f"memory of the server afterwards: {statistics.median(memory):.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--without-browser", action="store_true")
    options = parser.parse_args()
    versions = [f"{name} {version(name)}" for name in ("torch", "streamlit", "typer", "pydantic")]
    print(
        f"ders-studio {ders_core.__version__}, {', '.join(versions)}, Python "
        f"{platform.python_version()}, {platform.machine()}, {psutil.cpu_count()} cores\n"
        f"other work on the machine at the start: {os.getloadavg()[0]:.1f} processes on average\n"
        f"medians of {options.runs}"
    )
    with tempfile.TemporaryDirectory() as place:
        make_holes(Path(place) / "model", LAYERS)
        timed: dict[str, list[tuple[float, float]]] = {}
        for run in range(options.runs + 1):
            for name, command in commands(Path(place) / "model", TRAINED / "moe").items():
                result = once(command)
                if run:  # the first one reads files that the system has not read yet
                    timed.setdefault(name, []).append(result)
    print("\n".join(table(timed)), flush=True)
    if not options.without_browser:
        torch_seconds = statistics.median(seconds for seconds, _ in timed[TORCH])
        print("\n".join(studios(torch_seconds)))


if __name__ == "__main__":
    main()
