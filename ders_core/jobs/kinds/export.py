"""Export a packed checkpoint to a new directory."""

from __future__ import annotations

from typing import Any

from ders_core.errors import OutputError
from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import ExportSpec


def run(context: TaskContext) -> dict[str, Any]:
    from ders_core.pipeline.export import export

    spec = context.spec(ExportSpec)
    packed, out = context.allowed(spec.packed), context.allowed(spec.out)
    if out.exists():
        raise OutputError(f"{out} exists already; choose another name or remove it")

    def work() -> dict[str, Any]:
        base = context.allowed(spec.base) if spec.base else None
        result = export(
            packed, out, spec.format, base=base, quality=spec.quality, progress=context.progress
        )
        return result.to_dict()

    return context.step("export", work)
