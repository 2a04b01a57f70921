"""What can be asked of a worker: the kinds of job, their parameters and their steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ders_core.errors import JobError
from ders_core.pipeline.formats import Format, canonical

Device = Literal["auto", "cpu", "cuda"]


class Spec(BaseModel):
    """The parameters of one kind of job; paths are text."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DemoSpec(Spec):
    """Build the demo in the workspace."""

    seed: int = Field(default=0, ge=0)


class AnalyzeSpec(Spec):
    """Analyse a checkpoint. layers: None for all; workers: processes, one uses every core."""

    checkpoint: str
    spectra: Literal["none", "head", "curve", "exact"] = "curve"
    layers: list[int] | None = None
    device: Device = "auto"
    workers: int = Field(default=1, ge=1)


class RunSpec(Spec):
    """Compress, verify and, if there is a text, evaluate. recipe: YAML text; workers: processes,
    None for as many as there are cores."""

    checkpoint: str
    recipe: str
    name: str = ""
    device: Device = "auto"
    workers: int | None = Field(default=None, ge=1)
    text: str | None = None
    max_tokens: int = Field(default=8192, ge=2)


class ExportSpec(Spec):
    """Write a packed checkpoint to a new directory. quality: what is known, for the model card.
    base: what a patch will be applied to."""

    packed: str
    out: str
    format: Annotated[Format, BeforeValidator(canonical)] = "packed"
    base: str | None = None
    quality: dict[str, Any] | None = None


class EvaluateSpec(Spec):
    """Measure a model, against a reference if one is given."""

    model: str
    reference: str | None = None
    text: str
    device: Device = "auto"
    max_tokens: int = Field(default=8192, ge=2)


class UpcycleSpec(Spec):
    """Upcycle a dense model, and verify what was written. config: YAML text."""

    dense: str
    config: str
    name: str = ""
    device: Device = "auto"


SPECS: dict[str, type[Spec]] = {
    "demo": DemoSpec,
    "analyze": AnalyzeSpec,
    "run": RunSpec,
    "export": ExportSpec,
    "evaluate": EvaluateSpec,
    "upcycle": UpcycleSpec,
}

STEPS: dict[str, tuple[str, ...]] = {
    "demo": ("build",),
    "analyze": ("analyze",),
    "run": ("compress", "verify", "evaluate"),
    "export": ("export",),
    "evaluate": ("evaluate",),
    "upcycle": ("train", "verify"),
}


def parse_spec(kind: str, spec: dict[str, Any]) -> Spec:
    """Check a job's parameters and fill in what was left out. Raises JobError."""
    if kind not in SPECS:
        raise JobError(f"there is no job of kind {kind!r}; there are {', '.join(SPECS)}")
    try:
        return SPECS[kind].model_validate(spec)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its parameters"
        raise JobError(f"job {kind!r}, {where}: {first['msg'].lower()}") from error
