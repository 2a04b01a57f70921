"""The commands that start the studio, a worker alone, and the demo: demo, worker, app."""

from __future__ import annotations

from typing import Annotated

import typer

from ders_core.cli.console import print_line, progress_bar
from ders_core.cli.options import OutArg, SchedulerOption, WorkspaceOption
from ders_core.units import number_text


def demo(
    out: OutArg,
    build: Annotated[
        bool, typer.Option("--build", help="train a new one, a larger one, for some minutes")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="with --build; 0 by default")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="with --build: train the dense LM for fewer steps, the MoE for half as many: "
            "sooner, but worse",
        ),
    ] = None,
) -> None:
    """Unpack the demo: a small MoE, its dense parent, texts; or train one from nothing."""
    for option, number in (("--seed", seed), ("--steps", steps)):
        if number is not None and not build:
            raise typer.BadParameter("it belongs to --build", param_hint=option)
    with progress_bar("demo") as progress:
        if build:
            from ders_core.demo.build import DemoScale, build_demo

            scale = DemoScale.of_steps(steps)
            result = build_demo(out, seed=seed or 0, scale=scale, progress=progress)
        else:
            from ders_core.demo.unpack import unpack_demo

            result = unpack_demo(out, progress=progress)
    print_line(f"{result.moe}: perplexities on held-out text")
    for name, value in result.perplexities.items():
        print_line(f"  {name}: {number_text(value, 4)}")


def worker(workspace: WorkspaceOption = None, scheduler: SchedulerOption = None) -> None:
    """Run a worker alone: it takes up the jobs of a workspace until it is stopped."""
    from ders_core.jobs import Workspace, default_workspace
    from ders_core.jobs.job_process import InChildProcess
    from ders_core.jobs.worker import run_worker

    place = Workspace(workspace) if workspace else default_workspace()
    print_line(f"worker of {place.path}; stop it with Ctrl-C")
    run_worker(place, scheduler=scheduler, doer=InChildProcess)


def run_app(
    workspace: WorkspaceOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    with_demo: Annotated[bool, typer.Option("--demo", help="open the demo")] = False,
    scheduler: SchedulerOption = None,
    address: Annotated[
        str,
        typer.Option(
            metavar="HOST",
            help="what to listen on: an address of this machine; others than 127.0.0.1 and ::1 let "
            "other machines in, with the token that is printed",
        ),
    ] = "127.0.0.1",
    base_path: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="serve below this path, for a proxy [env: STREAMLIT_SERVER_BASE_URL_PATH]",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="a further name under which browsers reach the app, as a proxy's: "
            "studio.example.org, or http://localhost:9000; can be repeated "
            "[env: DERS_ALLOW_HOSTS]",
        ),
    ] = None,
) -> None:
    """Start the studio: the app and a worker, on this machine only; opens the browser.

    The printed address holds a token, without which nothing is shown. Set DERS_TOKEN, or
    DERS_TOKEN_FILE to a file that only you can read, for one of your own.
    """
    from ders_core.ui.launch import launch

    launch(
        workspace,
        port=port,
        with_demo=with_demo,
        scheduler=scheduler,
        host=address,
        base_path=base_path,
        allowed_hosts=allow_host or (),
    )
