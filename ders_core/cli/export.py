"""The commands that take a result home: export, apply, rollback."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ders_core.cli.console import progress_bar
from ders_core.units import bytes_text


class Form(StrEnum):
    """What `export` can write."""

    packed = "packed"
    dense = "dense"
    patch = "patch"


def export(
    packed: Annotated[Path, typer.Argument(metavar="PACKED", help="a packed checkpoint")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a directory that does not exist yet")],
    form: Annotated[Form, typer.Option("--format", help="what to write")] = Form.packed,
    base: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="what a patch will be applied to, e.g. the dense parent"),
    ] = None,
    quality: Annotated[
        Path | None, typer.Option(help="JSON of `ders eval --json`, for the model card")
    ] = None,
) -> None:
    """Take a packed checkpoint home, with a model card, checked after writing."""
    from ders_core.files.store import read_json
    from ders_core.pipeline.export import export as run_export

    measured = read_json(quality) if quality is not None else None
    with progress_bar("export") as progress:
        result = run_export(packed, out, form.value, base=base, quality=measured, progress=progress)
    for check in result.checks:
        print(f"ok: {check.name} ({check.detail})")
    print(f"{out}: {bytes_text(result.bytes)}")


def apply(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="what the patch was made against")],
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="of `ders export --format patch`")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a directory that does not exist yet")],
) -> None:
    """Bring a patch to its base: OUT is the packed checkpoint that the patch was made from."""
    from ders_core.packed.patch import apply_patch

    with progress_bar("apply") as progress:
        done = apply_patch(base, patch, out, progress=progress)
    print(f"{out}: {bytes_text(done.bytes)}, and {bytes_text(done.kept)} kept for the way back")


def rollback(
    applied: Annotated[Path, typer.Argument(metavar="APPLIED", help="of `ders apply`")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a directory that does not exist yet")],
) -> None:
    """Bring back the base that a patch was applied to, from the patched checkpoint alone."""
    from ders_core.packed.patch import rollback as run_rollback

    with progress_bar("rollback") as progress:
        size = run_rollback(applied, out, progress=progress)
    print(f"{out}: {bytes_text(size)}")


COMMANDS = {"export": export, "apply": apply, "rollback": rollback}
