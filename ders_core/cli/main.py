"""The `ders` command: thin, every command a call of the library.

Exit status: 0 done, 1 a `DersError` (one line on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import ders_core
from ders_core.cli.console import print_json, print_table, progress_bar
from ders_core.cli.export import register_export
from ders_core.cli.measure import register_measure
from ders_core.cli.options import (
    CheckpointArg,
    DeviceOption,
    JsonFlag,
    OutArg,
    PackedArg,
    RecipeOption,
    SchedulerOption,
    WorkspaceOption,
)
from ders_core.cli.upcycle import register_upcycle
from ders_core.errors import CheckpointError, DersError, OutputError
from ders_core.packed.open import open_checkpoint
from ders_core.units import bytes_text, share_text

app = typer.Typer(
    name="ders",
    help="See how redundant an upcycled MoE's experts are, shrink them, measure, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def info(checkpoint: CheckpointArg, as_json: JsonFlag = False) -> None:
    """Family, layers, experts, bytes, the experts' share, and whether they share one start."""
    from ders_core.analysis.summary import summarize

    summary = summarize(checkpoint)
    if as_json:
        print_json(summary.to_dict())
        return
    verdict = summary.upcycled
    print_table(
        ["", ""],
        [
            ["family", summary.family],
            ["recognised", f"{100 * summary.sure:.0f} % sure: {summary.because}"],
            *(["blocks", f"{name}: layers {own}"] for name, own in summary.stacks.items()),
            ["layers", f"{summary.layers} ({summary.moe_layers} with experts)"],
            ["experts", f"{summary.experts} per layer{summary.routing}"],
            ["shared expert", summary.shared or "none"],
            ["dtype", summary.dtype + (f", stored as {summary.stored}" if summary.stored else "")],
            ["size", bytes_text(summary.bytes_total)],
            *([["packed", summary.packed]] if summary.packed else []),
            [
                "experts take",
                f"{bytes_text(summary.bytes_experts)} ({share_text(summary.expert_share)})",
            ],
            ["identity", summary.identity[:16]],
            ["upcycled?", f"{verdict.verdict} (mean cosine of experts {verdict.mean_cosine:.4f})"],
        ],
    )
    print(verdict.sentence)


@app.command()
def analyze(
    checkpoint: CheckpointArg,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="FILE.html, .json or .parquet")
    ] = None,
    layers: Annotated[str, typer.Option(help="'all' or layers such as 0,4-7")] = "all",
    spectra: Annotated[bool, typer.Option("--spectra", help="singular values too")] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            "--spectra-kind",
            metavar="head|curve|exact",
            help="the largest 16, all (estimated for large matrices), or all exactly",
        ),
    ] = None,
    device: DeviceOption = "auto",
    workers: Annotated[
        int, typer.Option(min=1, help="processes; one uses every core by threads")
    ] = 1,
    scheduler: SchedulerOption = None,
) -> None:
    """Similarity of experts, norms of deltas, and with --spectra their singular values."""
    from ders_core.analysis import SPECTRA
    from ders_core.analysis import analyze as run_analysis
    from ders_core.compute.device import resolve_device
    from ders_core.figures.report import SUFFIXES, write_report
    from ders_core.jobs import Engine
    from ders_core.recipe.numbers import parse_numbers

    if output is not None and output.suffix not in SUFFIXES:
        raise typer.BadParameter(f"end the name in {', '.join(SUFFIXES)}", param_hint="-o")
    if output is not None and output.exists():
        raise OutputError(f"{output} exists already; choose another name or remove it")
    asked = next((own for own in SPECTRA if own == (kind or "curve") and own != "none"), None)
    if asked is None:
        raise typer.BadParameter(
            f"{kind!r} is none of head, curve, exact", param_hint="--spectra-kind"
        )
    where = resolve_device(device).type
    source = open_checkpoint(checkpoint)
    try:
        ranges = parse_numbers(layers)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--layers") from error
    chosen = None if ranges is None else [n for numbers in ranges for n in numbers]
    with (
        progress_bar("analyze") as progress,
        Engine(workers=workers, scheduler=scheduler, device=where) as engine,
    ):
        analysis = run_analysis(
            source,
            layers=chosen,
            spectra=asked if spectra or kind else "none",
            device=where,
            runner=engine.run,
            progress=progress,
        )
    groups = analysis.groups
    print_table(
        ["layer", "projection", "experts", "bases", "‖Δ‖/‖W‖", "mean 1−cos", "max 1−cos"],
        [
            [
                str(row.layer),
                str(row.projection),
                str(row.experts),
                str(row.clusters),
                f"{row.norm_ratio:.3g}",
                f"{row.mean_one_minus_cos:.3g}",
                f"{row.max_one_minus_cos:.3g}",
            ]
            for row in groups.itertuples()
        ],
    )
    print(analysis.verdict.sentence)
    if output is not None:
        write_report(analysis, output)
        print(f"written: {output}")


@app.command()
def plan(checkpoint: CheckpointArg, recipe: RecipeOption, as_json: JsonFlag = False) -> None:
    """Predicted bytes of a recipe, group by group; nothing is written."""
    from ders_core.pipeline.plan import resolve
    from ders_core.recipe import load_recipe

    chosen = load_recipe(recipe)
    chosen.base.check_files()  # refused now rather than by the run
    planned = resolve(chosen, open_checkpoint(checkpoint))
    if as_json:
        print_json(planned.to_dict())
        return
    print_table(
        ["layer", "projection", "codec", "before", "after"],
        [
            [
                str(entry.layer),
                entry.projection,
                entry.codec.label,
                bytes_text(entry.bytes_before),
                ("" if entry.exact else "≤ ") + bytes_text(entry.bytes_after),
            ]
            for entry in planned.entries
        ],
    )
    bound = "" if planned.exact else "at most "
    print(
        f"weight files: {bytes_text(planned.bytes_before)} → {bound}"
        f"{bytes_text(planned.bytes_after)} ({share_text(planned.ratio)} of original)"
    )


@app.command()
def compress(
    checkpoint: CheckpointArg,
    out: OutArg,
    recipe: RecipeOption,
    device: DeviceOption = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; by default one per core")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted run")] = False,
    scheduler: SchedulerOption = None,
) -> None:
    """Write the packed form of a checkpoint."""
    from ders_core.compute.device import resolve_device
    from ders_core.jobs import Engine
    from ders_core.pipeline.compress import compress as run_compress
    from ders_core.recipe import load_recipe

    where = resolve_device(device).type
    loaded = load_recipe(recipe)
    with (
        progress_bar("compress") as progress,
        Engine(workers=workers, scheduler=scheduler, device=where) as engine,
    ):
        report = run_compress(
            checkpoint,
            out,
            loaded,
            device=where,
            resume=resume,
            runner=engine.run,
            progress=progress,
        )
    print(
        f"{out}: {bytes_text(report.bytes_before)} → {bytes_text(report.bytes_after)} "
        f"({share_text(report.ratio)} of original) in {report.seconds:.1f} s on {report.device}"
    )


@app.command()
def verify(
    packed: PackedArg,
    against: Annotated[
        str | None, typer.Option("--against", metavar="CKPT", help="measure the error against it")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every checksum; with --against, measure the error of every group."""
    from ders_core.pipeline.verify import verify as run_verify

    with progress_bar("verify", hidden=as_json) as progress:
        found = run_verify(packed, against, progress=progress)
    if as_json:
        print_json(found.to_dict())
    else:
        if found.groups:
            print_table(
                ["layer", "projection", "", "‖Ŵ−W‖/‖Δ‖", "‖Ŵ−W‖/‖W‖"],
                [
                    [
                        str(group.layer),
                        group.projection,
                        "",
                        f"{group.rel_error_delta:.3g}",
                        f"{group.rel_error_weight:.3g}",
                    ]
                    for group in found.groups
                ],
            )
        if found.ok:
            print(f"{packed}: all {found.tensors} tensors are as they were written")
    if not found.ok:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise CheckpointError(found.problems[0] + more)


@app.command()
def synthesize(packed: PackedArg, out: OutArg) -> None:
    """Bring a packed checkpoint back to its original layout."""
    from ders_core.pipeline.synthesize import synthesize as run_synthesize

    with progress_bar("synthesize") as progress:
        sums = run_synthesize(packed, out, progress=progress)
    print(f"{out}: {len(sums)} tensors written")


@app.command()
def demo(
    out: OutArg,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            envvar="DERS_DEMO_STEPS",
            help="train the dense LM for fewer steps, the MoE for half as many: sooner, but worse",
        ),
    ] = None,
) -> None:
    """Build the demo: train a small dense LM, upcycle it to an MoE, fine-tune it."""
    from ders_core.demo import DemoScale, build_demo

    with progress_bar("demo") as progress:
        result = build_demo(out, seed=seed, scale=DemoScale.of_steps(steps), progress=progress)
    print(f"{result.moe}: perplexities on held-out text")
    for name, value in result.perplexities.items():
        print(f"  {name}: {value:.4g}")


@app.command()
def worker(workspace: WorkspaceOption = None, scheduler: SchedulerOption = None) -> None:
    """Run a worker alone: it takes up the jobs of a workspace until it is stopped."""
    from ders_core.jobs import Workspace, default_workspace
    from ders_core.jobs.worker import run_worker

    place = Workspace(workspace) if workspace else default_workspace()
    print(f"worker of {place.path}; stop it with Ctrl-C", flush=True)
    run_worker(place, scheduler=scheduler)


@app.command(name="app")
def run_app(
    workspace: WorkspaceOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    with_demo: Annotated[bool, typer.Option("--demo", help="build and open the demo")] = False,
    scheduler: SchedulerOption = None,
) -> None:
    """Start the studio: the app and a worker, on this machine only; opens the browser."""
    from ders_core.ui.launch import launch

    launch(workspace, port=port, with_demo=with_demo, scheduler=scheduler)


register_measure(app)
register_export(app)
register_upcycle(app)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        print(f"ders-studio {ders_core.__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors become one line on stderr."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large pages for large tensors
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except DersError as error:
        print(f"ders: {error}", file=sys.stderr)
        sys.exit(1)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        print("ders: interrupted; nothing half-written stands at the output", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        show = getattr(error, "show", None)  # a click usage error shows itself
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
