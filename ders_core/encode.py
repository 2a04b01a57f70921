"""Encode one group: the unit of work that any process, on any device, can do alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from ders_core.checkpoint import NAMES, Checkpoint, ExpertGroup
from ders_core.checkpoint.writer import write_json, write_tensors
from ders_core.clusters import cluster, delta_gram
from ders_core.codecs import DeltaCodec, EncodeContext, Keep, make_codec
from ders_core.codecs.prng import expert_seed
from ders_core.decompose import (
    Decomposition,
    DenseParent,
    around_mean,
    around_means,
    combine,
    from_parent,
)
from ders_core.errors import CheckpointError
from ders_core.measure import relative_errors, squared
from ders_core.report import ReportEntry

T = TypeVar("T")


@dataclass(frozen=True)
class EncodeTask:
    """All that a process needs to encode one group; plain values, so that it can travel."""

    checkpoint: str
    layer: int
    projection: str
    codec: dict[str, Any]
    seed: int
    dense: str | None
    clusters: int | Literal["auto"] | None
    extended: bool
    device: str
    staged: str


def encode_group(task: EncodeTask) -> ReportEntry:
    """Decompose and encode one group; stage its tensors and what is to be told about it."""
    started = time.monotonic()
    checkpoint: Checkpoint = _opened(Checkpoint, task.checkpoint, _stamp(task.checkpoint))
    group = checkpoint.group(task.layer, task.projection, task.extended)
    codec = make_codec(task.codec)
    bases: tuple[int, ...] | None = None
    errors = (0.0, 0.0)
    with one_thread(), torch.inference_mode():
        if isinstance(codec, Keep):
            parts = {"weight": group.read()}
        else:
            decomposition = _decompose(group, task)
            bases = decomposition.bases
            codec = codec.fit(decomposition.deltas())
            parts, errors = _encode_experts(decomposition, codec, task.seed)
        if group.biases:
            parts["bias"] = group.read_biases()
    named = {f"{group.prefix}.{part}": tensor for part, tensor in parts.items()}
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
    note = {"entry": asdict(entry), "codec": codec.dump(), "bases": bases}
    write_json(path.with_suffix(".json"), note)
    return entry


@lru_cache(maxsize=2)
def _opened(how: Callable[[str], T], path: str, stamp: object) -> T:
    """What was opened for the group before, as long as no file has changed: headers of many
    thousand tensors take seconds."""
    return how(path)


def _stamp(path: str) -> tuple[tuple[str, int, int], ...]:
    stats = ((file.name, file.stat()) for file in sorted(Path(path).expanduser().iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _decompose(group: ExpertGroup, task: EncodeTask) -> Decomposition:
    if task.dense:
        parent: DenseParent = _opened(DenseParent.open, task.dense, _stamp(task.dense))
        return from_parent(group, parent, task.device)
    if task.clusters is None:
        return around_mean(group, task.device)
    count = None if task.clusters == "auto" else task.clusters
    found = cluster(delta_gram(group), count, bits=8 * group.dtype.itemsize)
    if found.count == 1:
        return around_mean(group, task.device)
    return around_means(group, found.assignment, task.device)


def _encode_experts(
    decomposition: Decomposition, codec: DeltaCodec, seed: int
) -> tuple[dict[str, torch.Tensor], tuple[float, float]]:
    """The base and all parts stacked over the experts, on the CPU; and the two relative errors."""
    group = decomposition.group
    shape = (group.shape[1], group.shape[2])
    stacked = {
        name: torch.empty(group.shape[0], *spec.shape, dtype=spec.dtype)
        for name, spec in codec.parts(shape, group.dtype).items()
    }
    error = delta_energy = weight_energy = 0.0
    for expert in range(group.shape[0]):
        weight, base = decomposition.weight(expert).float(), decomposition.base_of(expert)
        delta = weight - base.float()
        context = EncodeContext(group.dtype, expert_seed(seed, *group.key, expert))
        parts = codec.encode(delta, context)
        for name, tensor in parts.items():
            stacked[name][expert] = tensor.cpu()
        synthesized = combine(base, codec.decode(parts, shape, context)).float()
        if not bool(torch.isfinite(synthesized).all()):
            raise CheckpointError(
                f"{group.expert_name(expert)}: its values are too large for codec "
                f"{codec.label!r} in {NAMES[group.dtype]}; keep this group as it is (codec: keep)"
            )
        error += squared(synthesized - weight)
        delta_energy += squared(delta)
        weight_energy += squared(weight)
    base = decomposition.base.cpu()
    return {"base": base, **stacked}, relative_errors(error, delta_energy, weight_energy)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums depend on how threads split them; one thread makes them the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
