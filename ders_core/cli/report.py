"""The command that puts an original and its compressed forms on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ders_core.cli.console import print_line, progress_bar
from ders_core.cli.options import CheckpointArg
from ders_core.errors import CheckpointError
from ders_core.units import bytes_text

if TYPE_CHECKING:
    from ders_core.checkpoint import Checkpoint
    from ders_core.figures.decision import Candidate
    from ders_core.pipeline.quality import Quality

ENDING = ".html"


def report(
    checkpoint: CheckpointArg,
    packed: Annotated[
        list[Path], typer.Argument(metavar="PACKED...", help="its packed DeRS directories")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.html", help="a new file to write")
    ],
    quality: Annotated[
        list[Path] | None,
        typer.Option(help="JSON of `ders eval --json`; one for each PACKED, in their order"),
    ] = None,
) -> None:
    """An original and its packed forms on one page: sizes, what they cost, and what is alike.

    Each form is verified against the original, whose experts are compared with each other; the
    page stands alone and asks no other host.
    """
    from plotly.offline import get_plotlyjs

    from ders_core.analysis import analyze
    from ders_core.figures.decision import decision_html
    from ders_core.files.address import name_of
    from ders_core.files.output import new_file, new_target
    from ders_core.packed.open import open_checkpoint
    from ders_core.pipeline.given_quality import read_quality

    if output.suffix != ENDING:
        raise typer.BadParameter(f"end the name in {ENDING}", param_hint="-o")
    new_target(output)
    files = quality or []
    if files and len(files) != len(packed):
        raise typer.BadParameter(
            f"there are {len(files)} for {len(packed)} packed directories; give one for each, or "
            "none",
            param_hint="--quality",
        )
    measured: list[Quality | None] = [read_quality(file) for file in files]
    if not measured:
        measured = [None] * len(packed)
    source = open_checkpoint(checkpoint)
    with new_file(output, needs=len(get_plotlyjs().encode())) as aside:
        candidates = _candidates(checkpoint, source, packed, measured)
        with progress_bar("analyze") as progress:
            analysis = analyze(source, progress=progress)
        page = decision_html(name_of(source.path), source.bytes_total, candidates, analysis)
        aside.write_text(page, encoding="utf-8")
    print_line(f"{output}: {bytes_text(output.stat().st_size)}")


def _candidates(
    checkpoint: str,
    source: Checkpoint,
    packed: Sequence[Path],
    measured: Sequence[Quality | None],
) -> list[Candidate]:
    """Raises CheckpointError if one of them is damaged or packed from other weights."""
    from ders_core.figures.decision import candidate
    from ders_core.files.address import name_of
    from ders_core.packed.reader import PackedCheckpoint
    from ders_core.pipeline.verify import origin_problem, verify

    opened = [PackedCheckpoint(path) for path in packed]
    for one in opened:
        problem = origin_problem(one, source)
        if problem:
            raise CheckpointError(problem)
    found = []
    for one, quality in zip(opened, measured, strict=True):
        with progress_bar(f"verify {name_of(one.path)}") as progress:
            verification = verify(one.path, checkpoint, progress=progress)
        if verification.problems:
            problem = verification.problems[0]
            is_named = str(one.path) in problem
            raise CheckpointError(problem if is_named else f"{one.path}: {problem}")
        found.append(candidate(one, verification.groups, quality))
    return found
