"""Upcycle a dense model: train the light deltas, then verify what was written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ders_core.errors import OutputError
from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import UpcycleSpec

if TYPE_CHECKING:
    from ders_core.upcycle import UpcycleConfig

PACKED = "packed"
CONFIG = "upcycle.yaml"
RESULT = "result.json"


def run(context: TaskContext) -> dict[str, Any]:
    from ders_core.upcycle import UpcycleConfig

    spec = context.spec(UpcycleSpec)
    dense = context.allowed(spec.dense)
    config = _allowed_files(context, UpcycleConfig.from_yaml(spec.config))
    place = context.directory()
    (place / CONFIG).write_text(spec.config, encoding="utf-8")
    packed, device = place / PACKED, context.device(spec.device)

    trained = context.step(
        "train", lambda: _train(context, dense, packed, config, device), place / RESULT
    )
    verification = context.step(
        "verify", lambda: _verify(context, packed), place / "verification.json"
    )
    return {
        "packed": str(packed),
        "upcycled": trained,
        "verification": verification,
        "bytes_before": trained["moe_bytes"],
        "bytes_after": trained["packed_bytes"],
        "ratio": trained["packed_bytes"] / trained["moe_bytes"],
        "device": device,
    }


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

    if packed.exists():  # finished, but its result was lost with the worker
        return read_result(packed).to_dict()
    result = upcycle(dense, packed, config, device=device, resume=True, progress=context.progress)
    return result.to_dict()


def _verify(context: TaskContext, packed: Path) -> dict[str, Any]:
    from ders_core.pipeline.verify import verify

    found = verify(packed, progress=context.progress)
    if not found.ok:
        (context.directory() / RESULT).unlink()
        shutil.rmtree(packed)
        raise OutputError(f"{found.problems[0]}; resume this run to train it again")
    return found.to_dict()
