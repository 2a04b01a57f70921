"""Processes that start with everything imported: forked from one that is kept for it.

Python's forkserver imports torch, transformers and the package once; what it forks is there
in a hundredth of a second, where a new process takes four seconds of a core. There is one server in
a process, and what it imports is fixed when it starts: `start` is called before anyone else may.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import forkserver
from pathlib import Path
from socket import socket
from traceback import print_exc

FORKS = multiprocessing.get_context("forkserver")
PACKAGE = Path(__file__).parents[2] / "ders_core"
IMPORTED = [
    "numba",
    "pandas",
    "plotly.io",
    "pyarrow.parquet",
    "torch",
    "transformers",
    "ders_core.analysis.analyzer",
    "ders_core.evaluate",
    "ders_core.calibrate",
    "ders_core.compute.kernels.averages",  # and with it numba
    "ders_core.compute.kernels.levels",
    "ders_core.compute.kernels.sums",
    "ders_core.figures.report",
    "ders_core.hf",
    "ders_core.jobs.worker",
    "ders_core.pipeline.compress",
    "ders_core.upcycle.upcycler",
    "ders_core.repair.repairer",
    "ders_core.figures.pilot",
    "ders_core.tune.pilot.run",
    "ders_core.tune.prove",
    "ders_core.tune.tuner",
    *sorted(
        f"ders_core.{folder}.{file.stem}".replace("/", ".")
        for folder in ("cli", "compute/kernels", "decompose/bases", "jobs/kinds", "upcycle/forms")
        for file in (PACKAGE / folder).glob("[a-z]*.py")
    ),
    "tests.support.before_forks",  # found from the folder in which tests are run
]
"""Modules; what the package imports later, when it is used, is named here itself."""


def start() -> None:
    """Start the server; nothing happens if it runs."""
    FORKS.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


def ranks(count: int, work: Callable[..., object], *given: object, place: Path) -> None:
    """Do work(*given), both picklable, in `count` processes with the variables that `torchrun` sets
    for each of its ranks. All must end well.

    place: a folder for what they print, which is shown if one of them does not.
    """
    start()
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    outputs = [place / f"rank {rank}" for rank in range(count)]
    processes = []
    for rank, output in enumerate(outputs):
        variables = {key: str(value) for key, value in shared.items()}
        variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        process = FORKS.Process(target=_work, args=(work, given, variables, output))
        process.start()
        processes.append(process)
    for process, output in zip(processes, outputs, strict=True):
        process.join()
        assert process.exitcode == 0, output.read_text(errors="replace")[-3000:]


def _work(
    work: Callable[..., object],
    given: tuple[object, ...],
    variables: dict[str, str],
    printed: Path,
) -> None:
    os.environ.update(variables)
    with open(printed, "w") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            work(*given)
        except SystemExit as left:
            sys.exit(left.code)
        except BaseException:
            print_exc()
            sys.exit(1)
