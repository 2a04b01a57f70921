"""Upcycle a dense model: train the light deltas, then verify what was written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ders_core.errors import OutputError
from ders_core.files.output import sweep_if_exists
from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec
from ders_core.jobs.results import PackedResult
from ders_core.jobs.workspace import place_label

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext
    from ders_core.upcycle import UpcycleConfig

PACKED = "packed"
CONFIG = "upcycle.yaml"
RESULT = "result.json"


class UpcycleSpec(Spec):
    """Upcycle a dense model, and verify what was written. config: YAML text."""

    dense: str
    config: str
    name: str = ""
    device: Device = "auto"


class UpcycleFigures(Result):
    """The result of the training, see `ders_core.upcycle.upcycler.UpcycleResult`.

    Perplexities are on the held-out text, None without one. parameters, trained: counts of values;
    *_bytes: of the weight files; peak_memory: bytes; precision: the dtype of computation;
    resumed: where an interrupted training went on.
    """

    out: str
    label: str
    steps: int
    parameters: int
    trained: int
    dense_bytes: int
    packed_bytes: int
    moe_bytes: int
    start_difference: float
    dense_perplexity: float | None = None
    perplexity: float | None = None
    peak_memory: int
    device: str
    seconds: float
    precision: str = ""
    resumed: str = ""


class UpcycleResult(PackedResult):
    """upcycled: what the training came to."""

    upcycled: UpcycleFigures


@KINDS.register
class Upcycle(Kind[UpcycleSpec, UpcycleResult]):
    """Train a dense model into an MoE whose experts' deltas are light."""

    name = "upcycle"
    steps = ("train", "verify")
    spec = UpcycleSpec
    result = UpcycleResult

    def title(self, spec: UpcycleSpec) -> str:
        return spec.name or f"Upcycle {place_label(spec.dense)}"

    def run(self, context: TaskContext, spec: UpcycleSpec) -> UpcycleResult:
        from ders_core.files.writer import write_text
        from ders_core.upcycle import UpcycleConfig

        dense = context.allowed(spec.dense)
        config = _allowed_files(context, UpcycleConfig.from_yaml(spec.config))
        directory = context.directory()
        write_text(directory / CONFIG, spec.config)
        packed, device = directory / PACKED, context.device(spec.device)

        trained = context.step(
            "train", lambda: _train(context, dense, packed, config, device), directory / RESULT
        )
        verification = context.step(
            "verify", lambda: _verify(context, packed), directory / "verification.json"
        )
        return UpcycleResult.model_validate(
            {
                "packed": str(packed),
                "upcycled": trained,
                "verification": verification,
                "bytes_before": trained["moe_bytes"],
                "bytes_after": trained["packed_bytes"],
                "ratio": trained["packed_bytes"] / trained["moe_bytes"],
                "device": device,
            }
        )


def _allowed_files(context: TaskContext, config: UpcycleConfig) -> UpcycleConfig:
    """The configuration with its files' full paths. Raises JobError for one outside the roots."""
    data = config.data
    files = {
        "texts": tuple(context.allowed(str(text)) for text in data.texts),
        "heldout": None if data.heldout is None else context.allowed(str(data.heldout)),
    }
    return config.model_copy(update={"data": data.model_copy(update=files)})


def _train(
    context: TaskContext, dense: Path, packed: Path, config: UpcycleConfig, device: str
) -> dict[str, Any]:
    from ders_core.upcycle.upcycler import read_result, upcycle

    if sweep_if_exists(packed):  # an earlier attempt finished it, and died before the result
        return read_result(packed).to_dict()
    result = upcycle(dense, packed, config, device=device, resume=True, progress=context.progress)
    if result.resumed:
        context.log(result.resumed)
    return result.to_dict()


def _verify(context: TaskContext, packed: Path) -> dict[str, Any]:
    from ders_core.pipeline.verify import verify

    verification = verify(packed, progress=context.progress)
    if not verification.ok:
        (context.directory() / RESULT).unlink()
        shutil.rmtree(packed)
        raise OutputError(f"{verification.problems[0]}; resume this run to train it again")
    return verification.to_dict()
