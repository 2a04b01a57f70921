"""The commands that write a result in the format that somebody needs, and give it away: export,
push, apply, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ders_core.cli.console import print_json, print_line, print_links, progress_bar
from ders_core.cli.options import JsonFlag, WrittenDtypeOption
from ders_core.pipeline.formats import FORMATS, Format, canonical
from ders_core.units import bytes_text


def parse_format(text: str) -> Format:
    """The format of that name. Raises BadParameter if there is none."""
    name = canonical(text)
    if name not in FORMATS:
        known = ", ".join(map(repr, FORMATS))
        raise typer.BadParameter(f"{text!r} is not one of {known}.")
    return name


def export(
    packed: Annotated[Path, typer.Argument(metavar="PACKED", help="a packed checkpoint")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a directory that does not exist yet")],
    format: Annotated[
        str,
        typer.Option(parser=parse_format, metavar=f"[{'|'.join(FORMATS)}]", help="what to write"),
    ] = "packed",
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="what a patch will be applied to, for instance the dense parent",
        ),
    ] = None,
    quality: Annotated[
        Path | None, typer.Option(help="JSON of `ders eval --json`, for the model card")
    ] = None,
    dtype: WrittenDtypeOption = "auto",
) -> None:
    """Write a packed checkpoint packed, in its original layout, or as a patch.

    A model card is added, and everything is checked after writing.
    """
    from ders_core.files.store import TensorStore
    from ders_core.pipeline.export import export as write_export
    from ders_core.pipeline.given_quality import read_quality

    measured = read_quality(quality).to_dict() if quality is not None else None
    with progress_bar("export") as progress:
        result = write_export(
            packed,
            out,
            canonical(format),
            base=base,
            quality=measured,
            dtype=dtype,
            progress=progress,
        )
    for check in result.checks:
        print_line(f"ok: {check.name} ({check.detail})")
    print_line(f"{out}: {bytes_text(result.bytes)}")
    print_links(TensorStore.open(packed).beside.linked_out)


def push(
    directory: Annotated[
        Path, typer.Argument(metavar="EXPORTED", help="a directory that `ders export` wrote")
    ],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="the repository to make")],
    public: Annotated[bool, typer.Option("--public", help="everybody may see it")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Push an exported directory to a model hub: huggingface.co, or what HF_ENDPOINT names.

    HF_TOKEN in the environment holds the token. The repository is private unless --public is
    given; its files appear at once or not at all. After a failure the same command goes on.
    """
    from ders_core.pipeline.push import push as push_files

    with progress_bar("push", hidden=as_json) as progress:
        result = push_files(directory, name, private=not public, progress=progress)
    if as_json:
        print_json(result.to_dict())
        return
    seen = "private" if result.private else "public"
    before = ", was there already" if result.was_there else ""
    print_line(f"{result.address}: {bytes_text(result.bytes)}, {seen}{before}")


def apply(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="the checkpoint that the patch was made against")
    ],
    patch: Annotated[
        Path, typer.Argument(metavar="PATCH", help="made by `ders export --format patch`")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a directory that does not exist yet")],
) -> None:
    """Apply a patch to its base: OUT is the packed checkpoint that the patch was made from."""
    from ders_core.files.store import TensorStore
    from ders_core.packed.patch import apply_patch

    with progress_bar("apply") as progress:
        applied = apply_patch(base, patch, out, progress=progress)
    print_line(
        f"{out}: {bytes_text(applied.bytes)}, and {bytes_text(applied.kept)} kept for the way back"
    )
    print_links(TensorStore.open(base).beside.linked_out)


def rollback(
    applied: Annotated[Path, typer.Argument(metavar="APPLIED", help="made by `ders apply`")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a directory that does not exist yet")],
) -> None:
    """Bring back the base that a patch was applied to, from the patched checkpoint alone."""
    from ders_core.packed.patch import rollback as write_base

    with progress_bar("rollback") as progress:
        size = write_base(applied, out, progress=progress)
    print_line(f"{out}: {bytes_text(size)}")
