"""Export a packed checkpoint to a new directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from ders_core.jobs.kind import KINDS, Kind, Result, Spec
from ders_core.pipeline.formats import Format, canonical

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext


CHECKED = "checked.json"
"""In the job's directory: the result of an export that needed only its name any more."""


class ExportSpec(Spec):
    """Write a packed checkpoint to a new directory. base: the checkpoint that a patch will be
    applied to. quality, outlook: measured and predicted figures for the model card."""

    packed: str
    out: str
    format: Annotated[Format, BeforeValidator(canonical)] = "packed"
    base: str | None = None
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
        from ders_core.files.json_object import read_json
        from ders_core.files.output import new_target
        from ders_core.files.writer import write_json
        from ders_core.pipeline.export import export

        packed, out = context.allowed(spec.packed), context.allowed(spec.out)
        note = context.directory() / CHECKED
        if note.is_file() and out.exists():  # of an attempt that died right after
            return ExportResult.model_validate(context.step("export", lambda: read_json(note)))
        new_target(out)

        def write() -> dict[str, Any]:
            base = context.allowed(spec.base) if spec.base else None
            try:
                return export(
                    packed,
                    out,
                    spec.format,
                    base=base,
                    quality=spec.quality,
                    outlook=spec.outlook,
                    progress=context.progress,
                    checked=lambda result: write_json(note, result.to_dict()),
                ).to_dict()
            except BaseException:
                note.unlink(missing_ok=True)  # what is at `out` then is not ours
                raise

        return ExportResult.model_validate(context.step("export", write))
