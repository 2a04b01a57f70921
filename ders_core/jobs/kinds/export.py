"""Export a packed checkpoint to a new directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from ders_core.errors import CheckpointError
from ders_core.files.place_errors import writing
from ders_core.jobs.kind import KINDS, Kind, Result, Spec
from ders_core.pipeline.formats import Format, canonical

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext


class ExportSpec(Spec):
    """Write a packed checkpoint to a new directory. base: the checkpoint that a patch will be
    applied to. dtype: of the weights, for the format original. quality, outlook: measured and
    predicted figures for the model card."""

    packed: str
    out: str
    format: Annotated[Format, BeforeValidator(canonical)] = "packed"
    base: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quality: dict[str, Any] | None = None
    outlook: dict[str, float | None] | None = None


class ExportCheck(Result):
    """One check of the written files. detail: a sentence about what was compared."""

    name: str
    ok: bool
    detail: str = ""


class ExportResult(Result):
    """out: the directory. bytes: of the weight files, or of a patch's tensors."""

    out: str
    format: str
    bytes: int
    checks: tuple[ExportCheck, ...] = ()


NOTE = "export.json"
"""In the job's directory: the result, and which directory it was before it was renamed."""


@KINDS.register
class Export(Kind[ExportSpec, ExportResult]):
    """Write a packed checkpoint packed, in its original layout, or as a patch."""

    name = "export"
    steps = ("export",)
    spec = ExportSpec
    result = ExportResult

    def title(self, spec: ExportSpec) -> str:
        return f"Export {Path(spec.out).name}"

    def run(self, context: TaskContext, spec: ExportSpec) -> ExportResult:
        from ders_core.files.output import new_target
        from ders_core.files.writer import write_json
        from ders_core.pipeline.export import ExportResult as Exported
        from ders_core.pipeline.export import export

        packed, out = context.allowed(spec.packed), context.allowed(spec.out)
        note = context.directory() / NOTE

        def ready(result: Exported, directory: Path) -> None:
            with writing(note):
                write_json(note, {"result": result.to_dict(), "place": _place(directory)})

        def write() -> dict[str, Any]:
            earlier = _finished(note, out)
            if earlier is not None:
                return earlier
            base = context.allowed(spec.base) if spec.base else None
            return export(
                packed,
                new_target(out),
                spec.format,
                base=base,
                quality=spec.quality,
                outlook=spec.outlook,
                dtype=spec.dtype,
                progress=context.progress,
                ready=ready,
            ).to_dict()

        return ExportResult.model_validate(context.step("export", write))


def _place(directory: Path) -> list[int]:
    """What a directory keeps when it is renamed."""
    status = os.stat(directory)
    return [status.st_dev, status.st_ino]


def _finished(note: Path, out: Path) -> dict[str, Any] | None:
    """The result of an attempt that died right after it gave its output the name; else None."""
    from ders_core.files.json_object import read_json

    try:
        entry = read_json(note)
        result = entry["result"] if entry["place"] == _place(out) else None
    except (CheckpointError, OSError, KeyError):
        return None
    return result if isinstance(result, dict) else None
