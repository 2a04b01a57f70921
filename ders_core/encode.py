"""Encode one group: the unit of work that any process, on any device, can do alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ders_core.checkpoint import NAMES, Checkpoint
from ders_core.checkpoint.writer import write_json, write_tensors
from ders_core.codecs import DeltaCodec, EncodeContext, make_codec
from ders_core.codecs.prng import expert_seed
from ders_core.decompose import Decomposition, DenseParent, combine, decompose
from ders_core.errors import CheckpointError
from ders_core.measure import relative_errors, squared
from ders_core.plan import part_name
from ders_core.report import ReportEntry


@dataclass(frozen=True)
class EncodeTask:
    """All that a process needs to encode one group; plain values, so that it can travel."""

    checkpoint: str
    layer: int
    projection: str
    codec: dict[str, Any]
    seed: int
    dense: str | None
    device: str
    staged: str


def encode_group(task: EncodeTask) -> ReportEntry:
    """Decompose and encode one group; stage its tensors and what is to be told about it."""
    started = time.monotonic()
    checkpoint = Checkpoint(task.checkpoint)
    group = checkpoint.group(task.layer, task.projection)
    parent = DenseParent.open(task.dense) if task.dense else None
    with one_thread(), torch.inference_mode():
        decomposition = decompose(group, checkpoint.layout, parent, task.device)
        codec = make_codec(task.codec).fit(decomposition.deltas())
        parts, errors = _encode_experts(decomposition, codec, task.seed)
    named = {
        part_name(checkpoint, group.layer, group.projection, part): tensor
        for part, tensor in parts.items()
    }
    path = Path(task.staged)
    write_tensors(path, named)
    entry = ReportEntry(
        *group.key,
        codec.label,
        group.nbytes,
        sum(tensor.nbytes for tensor in named.values()),
        *errors,
        time.monotonic() - started,
    )
    write_json(path.with_suffix(".json"), {"entry": asdict(entry), "codec": codec.dump()})
    return entry


def _encode_experts(
    decomposition: Decomposition, codec: DeltaCodec, seed: int
) -> tuple[dict[str, torch.Tensor], tuple[float, float]]:
    """The base and all parts stacked over the experts, on the CPU; and the two relative errors."""
    group, base = decomposition.group, decomposition.base
    shape = (group.shape[1], group.shape[2])
    stacked = {
        name: torch.empty(group.shape[0], *spec.shape, dtype=spec.dtype)
        for name, spec in codec.parts(shape, group.dtype).items()
    }
    error = delta_energy = weight_energy = 0.0
    for expert in range(group.shape[0]):
        weight = decomposition.weight(expert).float()
        delta = weight - base.float()
        context = EncodeContext(group.dtype, expert_seed(seed, *group.key, expert))
        parts = codec.encode(delta, context)
        for name, tensor in parts.items():
            stacked[name][expert] = tensor.cpu()
        synthesized = combine(base, codec.decode(parts, shape, context)).float()
        if not bool(torch.isfinite(synthesized).all()):
            raise CheckpointError(
                f"{group.sources[expert]}: its values are too large for codec "
                f"{codec.label!r} in {NAMES[group.dtype]}; keep this group as it is (codec: keep)"
            )
        error += squared(synthesized - weight)
        delta_energy += squared(delta)
        weight_energy += squared(weight)
    return {"base": base.cpu(), **stacked}, relative_errors(error, delta_energy, weight_energy)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums depend on how threads split them; one thread makes them the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
