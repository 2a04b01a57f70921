"""DeRS: Decompose, Replace, Synthesis for upcycled Mixture-of-Experts (arXiv 2503.01359).

The names below are the public ones; each is imported when it is first used, so that
`import ders_core` alone stays quick. What runs models is imported from `ders_core.hf`,
`ders_core.evaluate`, `ders_core.calibrate`, `ders_core.repair` and `ders_core.upcycle`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ders_core.later import names_later

if TYPE_CHECKING:
    from ders_core.analysis import Analysis, analyze
    from ders_core.analysis.summary import Summary, summarize
    from ders_core.checkpoint import Checkpoint, ExpertGroup
    from ders_core.codecs import Codec, make_codec
    from ders_core.errors import (
        Cancelled,
        CheckpointError,
        CodecError,
        DersError,
        EvaluationError,
        JobError,
        OutputError,
        RecipeError,
    )
    from ders_core.packed.open import open_checkpoint
    from ders_core.packed.patch import apply_patch, rollback
    from ders_core.pipeline.compress import compress
    from ders_core.pipeline.export import export
    from ders_core.pipeline.forecast import Forecast, forecast
    from ders_core.pipeline.plan import Plan, resolve
    from ders_core.pipeline.push import push
    from ders_core.pipeline.report import Report
    from ders_core.pipeline.sampling import Extent
    from ders_core.pipeline.synthesize import synthesize
    from ders_core.pipeline.verify import Verification, verify
    from ders_core.recipe import Recipe, Rule, load_recipe, presets

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Cancelled",
    "Checkpoint",
    "CheckpointError",
    "Codec",
    "CodecError",
    "DersError",
    "EvaluationError",
    "ExpertGroup",
    "Extent",
    "Forecast",
    "JobError",
    "OutputError",
    "Plan",
    "Recipe",
    "RecipeError",
    "Report",
    "Rule",
    "Summary",
    "Verification",
    "analyze",
    "apply_patch",
    "compress",
    "export",
    "forecast",
    "load_recipe",
    "make_codec",
    "open_checkpoint",
    "presets",
    "push",
    "resolve",
    "rollback",
    "summarize",
    "synthesize",
    "verify",
]

_MODULES = {
    ".analysis": ("Analysis", "analyze"),
    ".analysis.summary": ("Summary", "summarize"),
    ".checkpoint": ("Checkpoint", "ExpertGroup"),
    ".codecs": ("Codec", "make_codec"),
    ".errors": (
        "Cancelled",
        "CheckpointError",
        "CodecError",
        "DersError",
        "EvaluationError",
        "JobError",
        "OutputError",
        "RecipeError",
    ),
    ".packed.open": ("open_checkpoint",),
    ".packed.patch": ("apply_patch", "rollback"),
    ".pipeline.compress": ("compress",),
    ".pipeline.export": ("export",),
    ".pipeline.forecast": ("Forecast", "forecast"),
    ".pipeline.plan": ("Plan", "resolve"),
    ".pipeline.push": ("push",),
    ".pipeline.report": ("Report",),
    ".pipeline.sampling": ("Extent",),
    ".pipeline.synthesize": ("synthesize",),
    ".pipeline.verify": ("Verification", "verify"),
    ".recipe": ("Recipe", "Rule", "load_recipe", "presets"),
}
__getattr__ = names_later(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
