"""The commands that look at a checkpoint: info, analyze."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ders_core.cli.console import print_json, print_line, print_table, progress_bar
from ders_core.cli.options import CheckpointArg, DeviceOption, JsonFlag, SchedulerOption
from ders_core.errors import DersError
from ders_core.units import bytes_text, listed, number_text, share_text

if TYPE_CHECKING:
    from ders_core.analysis import Analysis, Spectra


def info(
    checkpoint: CheckpointArg,
    with_verdict: Annotated[
        bool,
        typer.Option(
            "--verdict", help="of packed experts too whether they share one start: decodes a sample"
        ),
    ] = False,
    with_modes: Annotated[
        bool,
        typer.Option(
            "--runtime",
            help="show only what the weights take in memory, for each mode of loading a packed "
            "model",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Family, layers, experts, bytes, the experts' share, and whether they share one start."""
    if with_modes:
        if with_verdict:
            raise typer.BadParameter("--runtime and --verdict show different things; give one")
        _show_modes(checkpoint, as_json=as_json)
        return
    from ders_core.analysis.summary import summarize, summarize_quickly

    summary = summarize(checkpoint) if with_verdict else summarize_quickly(checkpoint)
    if as_json:
        print_json(summary.to_dict())
        return
    verdict = summary.upcycled
    print_table(
        ["", ""],
        [
            ["family", summary.family],
            ["recognised", f"{100 * summary.sure:.0f} % sure: {summary.because}"],
            *(
                ["blocks", f"{name}: layers {layer_text}"]
                for name, layer_text in summary.stacks.items()
            ),
            ["layers", f"{summary.layers} ({summary.moe_layers} with experts)"],
            ["experts", f"{summary.experts} per layer{summary.routing}"],
            ["shared expert", summary.shared or "none"],
            ["dtype", summary.dtype + (f", stored as {summary.stored}" if summary.stored else "")],
            ["size", bytes_text(summary.bytes_total)],
            *([["packed", summary.packed]] if summary.packed else []),
            *([["in memory", summary.in_memory]] if summary.in_memory else []),
            [
                "experts take",
                f"{bytes_text(summary.bytes_experts)} ({share_text(summary.expert_share)})",
            ],
            *([["left aside", listed(summary.left_aside)]] if summary.left_aside else []),
            *([["links left out", listed(summary.linked_out)]] if summary.linked_out else []),
            ["identity", summary.identity[:16]],
            ["upcycled?", verdict.short if verdict else "packed, not decoded: ask by --verdict"],
        ],
    )
    if verdict:
        print_line(verdict.sentence)


def _show_modes(checkpoint: str, *, as_json: bool) -> None:
    """What the weights take in memory, mode by mode. Raises DersError if nothing is packed."""
    from ders_core.packed.open import open_checkpoint
    from ders_core.runtime.resident import bytes_by_mode

    source = open_checkpoint(checkpoint)
    modes = bytes_by_mode(source)
    if modes is None:
        raise DersError(
            f"{source.place} is not packed, so it is loaded whole and there are no other modes; "
            "see `ders info` for its size"
        )
    if as_json:
        print_json([asdict(each) for each in modes])
        return
    whole = next(each.experts for each in modes if each.mode == "synthesized")
    rows = [
        [
            each.mode,
            bytes_text(each.experts),
            share_text(each.experts / whole if whole else 1.0),
            bytes_text(each.weights),
            f"at most {bytes_text(each.cache)}" if each.cache else "none",
        ]
        for each in modes
    ]
    share = "share of synthesized experts"
    print_table(["mode", "experts", share, "all weights", "cache beside them"], rows)


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
        int | None, typer.Option(min=1, help="threads; by default one per core")
    ] = None,
    scheduler: SchedulerOption = None,
) -> None:
    """Similarity of experts, norms of deltas, and with --spectra their singular values."""
    from ders_core.analysis import SPECTRA
    from ders_core.analysis import analyze as run_analysis
    from ders_core.compute.device import resolve_device
    from ders_core.figures.report import SUFFIXES, new_report
    from ders_core.files.output import new_target
    from ders_core.jobs import Engine
    from ders_core.packed.open import open_checkpoint
    from ders_core.recipe.numbers import numbers_up_to, parse_numbers

    if output is not None and output.suffix not in SUFFIXES:
        raise typer.BadParameter(f"end the name in {', '.join(SUFFIXES)}", param_hint="-o")
    if output is not None:
        new_target(output)
    spectrum = next((name for name in SPECTRA if name == (kind or "curve") != "none"), None)
    if spectrum is None:
        raise typer.BadParameter(
            f"{kind!r} is not one of head, curve, exact", param_hint="--spectra-kind"
        )
    where = resolve_device(device).type
    source = open_checkpoint(checkpoint)
    try:
        ranges = parse_numbers(layers)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--layers") from error
    last = source.moe_layers[-1]
    chosen = None if ranges is None else sorted({*numbers_up_to(ranges, last)})
    wanted = source.moe_layers if chosen is None else chosen
    groups = [group for group in source.groups() if group.layer in wanted]
    measured: Spectra = spectrum if spectra or kind else "none"
    with ExitStack() as stack:
        report = new_report(output, groups, measured) if output is not None else None
        write = stack.enter_context(report) if report is not None else None
        with (
            progress_bar("analyze") as progress,
            Engine(workers=workers, scheduler=scheduler, device=where) as engine,
        ):
            analysis = run_analysis(
                source,
                layers=chosen,
                spectra=measured,
                device=where,
                runner=engine.run,
                progress=progress,
            )
        _print_analysis(analysis)
        if write is not None:
            write(analysis)
    if output is not None:
        print_line(f"written: {output}")


def _print_analysis(analysis: Analysis) -> None:
    groups = analysis.groups
    print_table(
        ["layer", "projection", "experts", "bases", "‖Δ‖/‖W‖", "mean 1−cos", "max 1−cos"],
        [
            [
                *(str(row[name]) for name in ("layer", "projection", "experts", "clusters")),
                number_text(row["norm_ratio"]),
                number_text(row["mean_one_minus_cos"]),
                number_text(row["max_one_minus_cos"]),
            ]
            for row in groups.to_dict("records")
        ],
    )
    print_line(analysis.verdict.sentence)
