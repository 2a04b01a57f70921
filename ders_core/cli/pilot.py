"""The command that runs a staged plan and writes a report to decide on: pilot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ders_core.cli.console import STARTING, print_json, print_line, print_table, progress_bar
from ders_core.cli.options import (
    CheckpointArg,
    DeviceOption,
    FriendlyOption,
    JsonFlag,
    TrustOption,
)
from ders_core.errors import OutputError
from ders_core.pipeline.quality import KL, kl_text
from ders_core.units import share_text

if TYPE_CHECKING:
    from ders_core.tune.pilot.outcome import Pilot


def pilot(
    checkpoint: CheckpointArg,
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="[NAME=]PATH",
            help="text like that of your task; the first part calibrates, the rest is measured on; "
            "may be repeated",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="REPORT.html", help="a new file")
    ] = Path("pilot.html"),
    heldout: Annotated[
        list[str] | None,
        typer.Option(
            "--heldout",
            metavar="[NAME=]PATH",
            help="measure on this text instead, and calibrate on all of --text; may be repeated",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="WORDS",
            help="what all models go on with; by default beginnings of the text; may be repeated",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="keeps the calibration and what was measured, so that a pilot that was killed "
            "goes on; by default beside the report",
        ),
    ] = None,
    friendly: FriendlyOption = False,
    device: DeviceOption = "auto",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="to calibrate on")] = 12288,
    max_tokens: Annotated[int, typer.Option(min=2, help="measure on no more than these")] = 8192,
    trust_remote_code: TrustOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Try three safe sizes and an aggressive one, and write a report on which to decide.

    Compares the experts, calibrates, compresses each size, measures it on text that the calibration
    never saw, and lets it write beside the original.
    """
    from ders_core.files.output import new_file, new_target

    target = new_target(output)
    if target.suffix != ".html":
        raise OutputError(f"{target.name}: a report is a page; end its name in .html")
    with progress_bar("pilot", hidden=as_json) as progress:
        progress(0, 0, STARTING)
        from ders_core.compute.device import resolve_device
        from ders_core.figures.pilot import pilot_html
        from ders_core.files.named_texts import parse_named
        from ders_core.packed.open import open_checkpoint
        from ders_core.tune.measuring import Setting
        from ders_core.tune.pilot.run import Wishes
        from ders_core.tune.pilot.run import pilot as run_pilot

        setting = Setting(
            parse_named(text),
            device=resolve_device(device).type,
            max_tokens=max_tokens,
            trust_remote_code=trust_remote_code,
        )
        apart = parse_named(heldout) if heldout else None
        found = run_pilot(
            open_checkpoint(checkpoint),
            (work or target.with_suffix(".pilot")).expanduser().absolute(),
            Wishes(setting, apart, tuple(prompt or ()), tokens, friendly),
            progress=progress,
        )
        with new_file(target) as aside:
            aside.write_text(pilot_html(found), encoding="utf-8")
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    _print(found, target)


def _print(found: Pilot, target: Path) -> None:
    print_table(
        ["size", "of original", "measured safe", "KL, nats a token (95 %)", "predicted"],
        [
            [
                point.label,
                share_text(point.measured.nbytes / found.bytes_total),
                "yes" if point.is_safe else "no",
                kl_text(point.measured.quality.to_dict()),
                KL.text(point.predicted_kl),
            ]
            for point in found.points
        ],
    )
    for risk in found.risks:
        print_line(f"risk: {risk.what} {risk.fallback}")
    print_line(found.sentence)
    print_line(f"written: {target}")
