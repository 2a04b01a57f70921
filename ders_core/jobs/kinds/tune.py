"""From a budget to a recipe: calibrate if there is no calibration, score, allocate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec
from ders_core.jobs.workspace import place_label

if TYPE_CHECKING:
    from ders_core.checkpoint import Checkpoint
    from ders_core.jobs.context import TaskContext
    from ders_core.tune.bounds import Bound
    from ders_core.tune.constraints import Constraint

CALIBRATION = "calibration.safetensors"
RECIPE = "recipe.yaml"


class TuneSpec(Spec):
    """Find the recipe that loses least within a budget, or the smallest within a KL.

    budget: as `ders tune --budget` has it; max_kl: instead, nats a token; max_rise: instead, of the
    perplexity, such as '1%'. calibration: a file with gradients and others; text: instead, to make
    one with. friendly: only forms that hardware decodes easily. keep: layers that stay as they are.
    pin, floor: LAYERS=CODEC of deltas, and LAYERS=BITS a weight at least. trust_remote_code: run
    code that comes with the model, with the worker's rights."""

    checkpoint: str
    budget: str = ""
    max_kl: float | None = Field(default=None, gt=0)
    max_rise: str = ""
    calibration: str = ""
    text: str | tuple[str, ...] = ()
    name: str = ""
    friendly: bool = False
    per_expert: bool = False
    keep: str = ""
    forbid: tuple[str, ...] = ()
    pin: tuple[str, ...] = ()
    floor: tuple[str, ...] = ()
    device: Device = "auto"
    max_tokens: int = Field(default=12288, ge=1)
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _check(self) -> TuneSpec:
        if [bool(self.budget), self.max_kl is not None, bool(self.max_rise)].count(True) != 1:
            raise ValueError(
                "give either a budget, such as 40%, or a maximal KL, or a rise of the perplexity"
            )
        if bool(self.calibration) == bool(self.text):
            raise ValueError("give either a calibration, or text to make one with")
        return self


class TuneResult(Result):
    """recipe: path of the YAML file. calibration: path of the file that it needs. bytes_before,
    bytes_after: of weight files, the second foretold. predicted_kl: nats a token. gap: as of
    `ders_core.tune.Allocation`. units: what each got, as `ders tune --json` prints it."""

    recipe: str
    calibration: str
    bytes_before: int
    bytes_after: int
    predicted_kl: float | None
    gap: float
    rare: tuple[str, ...] = ()
    units: tuple[dict[str, Any], ...] = ()


@KINDS.register
class Tune(Kind[TuneSpec, TuneResult]):
    """From a budget to the recipe that loses least within it."""

    name = "tune"
    steps = ("calibrate", "tune")
    spec = TuneSpec
    result = TuneResult

    def title(self, spec: TuneSpec) -> str:
        return spec.name or f"Tune {place_label(spec.checkpoint)}"

    def run(self, context: TaskContext, spec: TuneSpec) -> TuneResult:
        demand = _Demand.of(spec, context.allowed(spec.checkpoint))
        given = context.allowed(spec.calibration) if spec.calibration else None

        def calibrated() -> dict[str, Any]:
            return {"calibration": str(given or _calibrated(context, spec, demand.checkpoint))}

        calibration = Path(context.step("calibrate", calibrated)["calibration"])
        tuned = context.step("tune", lambda: _tuned(context, spec, demand, calibration))
        return TuneResult.model_validate(tuned)


@dataclass(frozen=True)
class _Demand:
    """What a spec asks for, checked before any work."""

    checkpoint: Checkpoint
    bound: Bound
    constraints: Sequence[Constraint]

    @classmethod
    def of(cls, spec: TuneSpec, place: Path) -> _Demand:
        """Raises RecipeError and CodecError."""
        from ders_core.packed.open import open_checkpoint
        from ders_core.tune.constraints import check_selecting
        from ders_core.tune.demand import constraints_of, demanded_bound
        from ders_core.tune.units import units_of

        bound = demanded_bound(spec.budget or None, spec.max_kl, spec.max_rise or None)
        constraints = constraints_of(spec.keep or None, spec.forbid, spec.pin, spec.floor)
        checkpoint = open_checkpoint(place)
        check_selecting(constraints, units_of(checkpoint))
        return cls(checkpoint, bound, constraints)


def _calibrated(context: TaskContext, spec: TuneSpec, checkpoint: Checkpoint) -> Path:
    from ders_core.calibrate import calibrate, has_room_for_each

    out = context.directory() / CALIBRATION
    if not out.exists():  # of an attempt that died right after
        calibrate(
            checkpoint.path,
            out,
            text=context.allowed_texts(spec.text),
            device=context.device(spec.device),
            max_tokens=spec.max_tokens,
            gradients=True,
            others=True,
            each_expert=has_room_for_each(checkpoint),
            trust_remote_code=spec.trust_remote_code,
            progress=context.progress,
        )
    return out


def _tuned(
    context: TaskContext, spec: TuneSpec, demand: _Demand, calibration: Path
) -> dict[str, Any]:
    from ders_core.files.writer import write_text
    from ders_core.tune.tuner import tune

    tuned = tune(
        demand.checkpoint,
        demand.bound,
        calibration,
        constraints=demand.constraints,
        friendly=spec.friendly,
        per_expert=spec.per_expert,
        name=(spec.name or "tuned")[:80],
        directory=context.workspace.scores,
        progress=context.progress,
    )
    recipe = context.directory() / RECIPE
    write_text(recipe, tuned.recipe.to_yaml())
    values = tuned.to_dict()
    names = ("bytes_before", "bytes_after", "predicted_kl", "gap", "rare", "units")
    return {"recipe": str(recipe), "calibration": str(calibration)} | {
        name: values[name] for name in names
    }
