"""Encode one group: the unit of work that any process, on any device, can do alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.codecs import EncodeContext, Parts
from ders_core.codecs.coding.prng import expert_seed
from ders_core.codecs.group import GroupCodec, Stacked
from ders_core.compute.buffers import keep_small_blocks
from ders_core.compute.threads import one_thread
from ders_core.decompose.bases import (
    Decomposition,
    DenseParent,
    around_mean,
    around_means,
    around_median,
    around_routed,
    from_parent,
)
from ders_core.decompose.clusters import cluster, delta_gram
from ders_core.decompose.distortion import Squares, compare, is_finite, output_squared
from ders_core.errors import CheckpointError
from ders_core.files.cache import opened
from ders_core.files.spec import NAMES
from ders_core.files.writer import file_order, write_file, write_json
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.report import ReportEntry


@dataclass(frozen=True)
class EncodeTask:
    """All that a process needs to encode one group; plain values, so that it can travel.

    checkpoint: a path or an address, which may hold credentials. identity: of the checkpoint.
    ahead: the group that somebody will encode soon; its bytes are read beforehand.
    """

    checkpoint: str = field(repr=False)
    identity: str
    layer: int
    projection: str
    codec: Any
    uses: tuple[int, ...] | None
    seed: int
    base: str
    dense: str | None
    clusters: int | Literal["auto"] | None
    calibration: str | None
    extended: bool
    device: str
    staged: str
    ahead: tuple[int, str] | None = None


@dataclass(frozen=True)
class _Encoded:
    """A group against one base. error: Σ‖Ŵ−W‖²; errors: relative to Σ‖Δ‖² and Σ‖W‖²; output: √ of
    E‖(Ŵ−W)x‖² / E‖Wx‖², None without second moments."""

    base: str
    bases: tuple[int, ...] | None
    codec: GroupCodec
    tensors: dict[str, Stacked]
    lengths: dict[str, tuple[int, ...]]
    errors: tuple[float, float]
    output: float | None

    @property
    def loss(self) -> float:
        """What a choice of bases makes small: the error of outputs, if known, else of weights."""
        return self.errors[1] if self.output is None else self.output


def encode_group(task: EncodeTask) -> ReportEntry:
    """Decompose and encode one group; stage its tensors and what is to be told about it."""
    started = time.monotonic()
    keep_small_blocks()
    checkpoint: Checkpoint = opened(open_checkpoint, task.checkpoint, task.identity)
    group = checkpoint.group(task.layer, task.projection, task.extended)
    codec = GroupCodec.load(task.codec, task.uses, group.shape[0])
    others: dict[str, float] = {}
    with one_thread(), torch.inference_mode():
        if codec.keeps:
            weights = [matrix.read() for matrix in group.experts]
            kept = {"weight": Stacked.over_experts(weights)}
            best = _Encoded("none", None, codec, kept, {}, (0.0, 0.0), None)
        else:
            ahead = checkpoint.group(*task.ahead) if task.ahead else None
            tried = _tried(group, codec, task, ahead)
            best = next(tried)
            others[best.base] = best.errors[1]
            for own in tried:  # at most two are in memory
                others[own.base] = own.errors[1]
                best = min(best, own, key=lambda one: one.loss)
            del others[best.base]
        parts = dict(best.tensors)
        if group.biases:
            parts["bias"] = Stacked.whole(group.read_biases())
    named = {f"{group.prefix}.{part}": tensor for part, tensor in parts.items()}
    specs = {name: tensor.spec for name, tensor in named.items()}
    path = Path(task.staged)
    # not synced: checksums are compared when the tensors are used
    checksums = write_file(path, file_order(specs), lambda name: named[name].raw(), sync=False)
    entry = ReportEntry(
        *group.key,
        best.codec.label,
        group.nbytes,
        sum(spec.nbytes for spec in specs.values()),
        *best.errors,
        time.monotonic() - started,
        best.base,
        others,
        best.output,
    )
    told, uses = best.codec.dump()
    note = {
        "entry": asdict(entry),
        "codec": told,
        "uses": uses,
        "lengths": best.lengths,
        "bases": best.bases,
        "checksums": checksums,
    }
    write_json(path.with_suffix(".json"), note)
    return entry


def _tried(
    group: ExpertGroup, codec: GroupCodec, task: EncodeTask, ahead: ExpertGroup | None
) -> Iterator[_Encoded]:
    """The group against each base that is asked for. ahead: read while it is encoded."""
    for kind, split in _decompositions(group, task):
        if ahead is not None:
            ahead.read_ahead()
            ahead = None
        yield _encode(kind, split, codec, task)


def _decompositions(group: ExpertGroup, task: EncodeTask) -> Iterator[tuple[str, Decomposition]]:
    """The bases that are asked for, by name, one at a time."""
    if task.dense:
        parent: DenseParent = opened(DenseParent.open, task.dense)
        yield "dense", from_parent(group, parent, task.device)
    elif task.clusters is not None:
        count = None if task.clusters == "auto" else task.clusters
        found = cluster(delta_gram(group), count, bits=8 * group.dtype.itemsize)
        if found.count > 1:
            yield "clusters", around_means(group, found.assignment, task.device)
        else:
            yield "mean", around_mean(group, task.device)
    else:
        auto = task.base == "auto"
        if auto or task.base == "mean":
            yield "mean", around_mean(group, task.device)
        if auto or task.base == "median":
            yield "median", around_median(group, task.device)
        if task.calibration and (auto or task.base == "routed"):
            yield "routed", around_routed(group, _tokens(group, task.calibration), task.device)


def _tokens(group: ExpertGroup, calibration: str) -> list[int]:
    """How many tokens each expert saw; a shared one sees all."""
    measured = Calibration.open(calibration)
    routed = [int(count) for count in measured.routed(group.layer)]
    return routed + [measured.tokens] * (group.shape[0] - len(routed))


def _encode(
    base: str, decomposition: Decomposition, codec: GroupCodec, task: EncodeTask
) -> _Encoded:
    """The base and all parts over the experts, on the CPU; and the errors."""
    group = decomposition.group
    moments = None
    if task.calibration:
        moments = Calibration.open(task.calibration).moments(group.layer, group.projection)
        moments = None if moments is None else moments.to(task.device)
    fitted = codec.fit(decomposition.deltas)
    found, output, whole = Squares(), 0.0, 0.0
    parts: list[Parts] = []
    for expert, weight in decomposition.weights():
        own = decomposition.base_of(expert)
        seed = expert_seed(task.seed, *group.key, expert)
        context = EncodeContext(group.dtype, seed, moments)
        coder = fitted.expert(expert)
        encoded = coder.pack(weight, own, context)
        synthesized = coder.unpack(encoded, own, context)
        parts.append({name: tensor.cpu() for name, tensor in encoded.items()})
        if not is_finite(synthesized):
            raise CheckpointError(
                f"{group.expert_name(expert)}: its values are too large for codec "
                f"{coder.label!r} in {NAMES[group.dtype]}; keep this group as it is (codec: keep)"
            )
        found += compare(synthesized, weight, own)
        if moments is not None:
            output += output_squared(synthesized.float() - weight.float(), moments)
            whole += output_squared(weight, moments)
    stacked, lengths = fitted.stack(parts)
    return _Encoded(
        base,
        decomposition.bases,
        fitted,
        {"base": Stacked.whole(decomposition.base.cpu()), **stacked},
        lengths,
        found.relative,
        (output / whole) ** 0.5 if whole else None,
    )
