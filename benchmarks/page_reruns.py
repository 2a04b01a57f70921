"""What one click on a page of a large analysis costs the server, beside drawing every figure again.

Runs the pages Redundancy and Spectra in Streamlit's own tester, on an analysis of random numbers: a
refresh that changes nothing, another pair of experts, another layer. The median CPU seconds of the
thread that draws the page are printed, with figures kept that did not change (`ui/plots.py: made`),
and with every figure drawn again: the baseline, measured in turn in the same run.

    python benchmarks/page_reruns.py [--layers 94] [--experts 128] [--repeats 7] > FILE
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import psutil
import streamlit
from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
from streamlit.testing.v1 import AppTest
from upcycled import make_holes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.large_analyses import save_drawn_analysis

import ders_core
from ders_core.analysis import Analysis
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.ui import job_progress, plots
from ders_core.ui.opened import Open
from ders_core.ui.plots import made

APP = Path(__file__).parents[1] / "app.py"
POINTS = 64
"""Singular values of each expert."""

Click = Callable[[AppTest, int], Any]
CLICKS: tuple[tuple[str, str, Click], ...] = (
    ("redundancy", "nothing changes", lambda app, turn: app.run()),
    (
        "redundancy",
        "another pair",
        lambda app, turn: app.selectbox(key="pair_second").set_value(1 + turn % 2).run(),
    ),
    (
        "redundancy",
        "another layer",
        lambda app, turn: app.selectbox(key="red_layer").set_value(turn % 2).run(),
    ),
    ("spectra", "nothing changes", lambda app, turn: app.run()),
    (
        "spectra",
        "another layer",
        lambda app, turn: app.selectbox(key="spec_layer").set_value(turn % 2).run(),
    ),
)


@contextmanager
def drawing_seconds() -> Iterator[list[float]]:
    """CPU seconds of each run of a page."""
    seconds: list[float] = []
    draw = ScriptRunner._run_script_thread

    def timed(self: ScriptRunner) -> None:
        began = time.thread_time()
        try:
            draw(self)
        finally:
            seconds.append(time.thread_time() - began)

    ScriptRunner._run_script_thread = timed  # type: ignore[method-assign]
    yield seconds
    ScriptRunner._run_script_thread = draw  # type: ignore[method-assign]


def draw_again(
    key: str, draw: Callable[..., go.Figure], analysis: Analysis, *choice: Any, **options: Any
) -> go.Figure:
    """In place of `made`: nothing is kept."""
    return draw(analysis, *choice, **options)


def measured(repeats: int) -> Iterator[str]:
    yield f"{'':34}{'kept':>8}{'all drawn':>12}{'×':>8}"
    with drawing_seconds() as seconds:
        app = AppTest.from_file(str(APP), default_timeout=600).run()
        for page, name, click in CLICKS:
            app.switch_page(f"pages/{page}.py").run()
            times: dict[bool, list[float]] = {True: [], False: []}
            for turn in range(2 * repeats + 2):  # the first of each are not counted
                are_kept = turn % 4 < 2
                setattr(plots, "made", made if are_kept else draw_again)  # noqa: B010 (mypy)
                seconds.clear()
                click(app, turn)
                if app.exception:
                    raise SystemExit(f"{page}: {app.exception[0].value}")
                times[are_kept].append(sum(seconds))
            kept, drawn = (statistics.median(times[which][1:]) for which in (True, False))
            yield f"{page + ', ' + name:34}{kept:8.3f}{drawn:12.3f}{kept / drawn:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=94)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(
        f"ders-studio {ders_core.__version__}, streamlit {streamlit.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, {psutil.cpu_count()} cores\n"
        f"{options.layers} layers of {options.experts} experts, {POINTS} singular values of each\n"
        f"other work on the machine at the start: {os.getloadavg()[0]:.1f} processes on average\n"
        f"CPU seconds of the server for one click; medians of {options.repeats}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        workspace, model = Workspace(place / "workspace"), place / "moe"
        os.environ |= {"DERS_WORKSPACE": str(workspace.path), "DERS_ROOTS": str(place)}
        workspace.path.mkdir()
        make_holes(model, options.layers, options.experts)
        opened = open_checkpoint(model)
        save_drawn_analysis(workspace.analysis_dir(opened.identity), opened, POINTS)
        Open.load(workspace).with_checkpoint(model).save(workspace)
        setattr(job_progress, "ensure_worker", lambda workspace: None)  # noqa: B010 (mypy)
        for line in measured(options.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
