"""Encode one group: the unit of work that any process, on any device, can do alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.checkpoint.digest import WeightsDigest
from ders_core.codecs import Parts
from ders_core.codecs.group import GroupCodec, Stacked
from ders_core.compute.buffers import keep_small_blocks
from ders_core.compute.threads import one_thread, threads_for
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import Decomposition
from ders_core.decompose.distortion import Squares, is_finite
from ders_core.errors import CheckpointError
from ders_core.files.cache import opened
from ders_core.files.inputs import Held, same_inputs
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import file_order, write_file
from ders_core.later import torch
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.knowledge import Knowledge, Losses, encode_expert
from ders_core.pipeline.notes import note_of, write_note
from ders_core.pipeline.placed import PlacedGroup
from ders_core.pipeline.report import ReportEntry
from ders_core.pipeline.staging import writer_of
from ders_core.recipe import Recipe


@dataclass(frozen=True)
class CheckpointRef:
    """Where a checkpoint is, for another process to open it.

    place: a path or an address, which may hold credentials. identity: `Checkpoint.identity`.
    """

    place: str = field(repr=False)
    identity: str

    def open(self) -> Checkpoint:
        """The checkpoint; the same object as before while its files are unchanged."""
        checkpoint: Checkpoint = opened(open_checkpoint, self.place, self.identity)
        return checkpoint


@dataclass(frozen=True, kw_only=True)
class EncodeTask:
    """All that a process needs to encode one group. It is pickled, so it holds values and no open
    files.

    key: layer and projection of the group. device: where to encode. staged: the file to write, by
    whose name the note beside it goes. places: where to write the group's tensors instead, by their
    full names. run: a name of the run that the task belongs to.
    ahead: the key of the group that is encoded soon after; its bytes are read beforehand. groups:
    how many are encoded in all. removal: as of `EncodeContext`, of each expert; fewer where it is
    not known of the last. held: the files that the run has opened, which the task must read.
    """

    source: CheckpointRef
    recipe: Recipe
    key: tuple[int, str]
    device: str
    staged: str
    places: Mapping[str, FileTensor] | None = None
    run: str = ""
    ahead: tuple[int, str] | None = None
    groups: int = 1
    removal: tuple[float, ...] = ()
    held: Held = field(default=Held(), repr=False)


@dataclass(frozen=True)
class _Encoded:
    """A group against one base. output: √ of E‖(Ŵ−W)x‖² / E‖Wx‖², None without second moments.
    noise_cost, router_noise: as of `ReportEntry`. placed: if the tensors are written already; then
    `tensors` is empty."""

    base: str
    bases: tuple[int, ...] | None
    codec: GroupCodec
    tensors: Mapping[str, Stacked]
    lengths: Mapping[str, tuple[int, ...]]
    squares: Squares
    output: float | None
    noise_cost: float | None
    router_noise: float | None = None
    placed: PlacedGroup | None = None

    @property
    def errors(self) -> tuple[float, float]:
        """‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖."""
        return self.squares.relative

    @property
    def loss(self) -> float:
        """What a choice of bases makes small: the error of outputs, if known, else of weights."""
        return self.errors[1] if self.output is None else self.output


def encode_group(task: EncodeTask) -> ReportEntry:
    """Decompose and encode one group. Stages its tensors, and next to them a note in JSON of what
    the manifest and the report say about it, and of the weights that were read. Raises
    CheckpointError, also if a file was written meanwhile, CodecError, OutputError."""
    started = time.monotonic()
    keep_small_blocks()
    digest = WeightsDigest()
    with same_inputs(task.held), one_thread(), torch.inference_mode():
        checkpoint = task.source.open()
        checkpoint.store.hold()
        group = checkpoint.group(*task.key, task.recipe.extended)
        codec = task.recipe.group_codec(*task.key, group.shape[0])
        if codec.keeps:
            best = _kept(group, codec, digest)
            others: dict[str, float] = {}
        else:
            ahead = checkpoint.group(*task.ahead) if task.ahead else None
            best, others = _best(_tried(group, codec, task, ahead, digest))
        parts = dict(best.tensors)
        if group.biases:
            parts["bias"] = Stacked.whole(group.read_biases())
        digest.add_biases(group)
    read = {"sha256": digest.sha256, "version": checkpoint.store.version}
    return _stage(group, best, others, parts, read, task, started)


def _kept(group: ExpertGroup, codec: GroupCodec, digest: WeightsDigest) -> _Encoded:
    """A group whose experts all stay as they are."""
    matrices = [matrix.read() for matrix in group.experts]
    for matrix in matrices:
        digest.add(matrix)
    weights = Stacked.over_experts(matrices)
    return _Encoded("none", None, codec, {"weight": weights}, {}, Squares(), None, None)


def _best(tried: Iterator[_Encoded]) -> tuple[_Encoded, dict[str, float]]:
    """The first one with the least loss, and ‖Ŵ−W‖/‖W‖ of the others by the names of their bases.
    At most two are in memory."""
    best = next(tried)
    errors = {best.base: best.errors[1]}
    for encoded in tried:
        errors[encoded.base] = encoded.errors[1]
        best = min(best, encoded, key=lambda candidate: candidate.loss)
    del errors[best.base]
    return best, errors


def _tried(
    group: ExpertGroup,
    codec: GroupCodec,
    task: EncodeTask,
    ahead: ExpertGroup | None,
    digest: WeightsDigest,
) -> Iterator[_Encoded]:
    """The group against each base that the recipe offers. ahead: read while it is encoded. digest:
    gets the weights once."""
    recipe = task.recipe
    experts, out, width = group.shape
    held = codec.working_bytes * out * width
    threads = threads_for(experts, held, torch.device(task.device))
    calibration = Calibration.open(recipe.calibration) if recipe.calibration else None
    moments = calibration.moments(*task.key) if calibration else None
    known = Knowledge(
        None if moments is None else moments.to(task.device),
        calibration.curvatures(group) if calibration else None,
        task.removal,
        task.groups,
        calibration.router_curvatures(group) if calibration else None,
    )
    context = BaseContext(task.device, calibration.tokens_per_expert if calibration else None)
    seen: Callable[[torch.Tensor], None] | None = digest.add
    placed = PlacedGroup(group.prefix, task.places) if task.places is not None else None
    for name, decomposition in recipe.base.decompositions(group, context):
        if ahead is not None:
            ahead.read_ahead()
            ahead = None
        yield _encode(name, decomposition, codec, recipe.seed, known, threads, seen, placed)
        seen = placed = None  # another base that is better is written over the first one


def _encode(
    base: str,
    decomposition: Decomposition,
    codec: GroupCodec,
    seed: int,
    known: Knowledge,
    threads: int,
    seen: Callable[[torch.Tensor], None] | None,
    placed: PlacedGroup | None,
) -> _Encoded:
    """The base and all parts over the experts, on the CPU; and the errors. threads, seen: as of
    `Decomposition.each`. placed: gets base and parts, each expert's as soon as it is encoded. Sums
    are taken in the order of the experts."""
    group = decomposition.group
    fitted = codec.fit(decomposition.deltas)

    def encode_one(expert: int, weight: torch.Tensor) -> tuple[Parts, Losses]:
        coder, base = fitted.expert(expert), decomposition.base_of(expert)
        context, router = known.context(group, expert, seed), known.router(expert)
        encoded = encode_expert(coder, weight, base, context, router)
        if not is_finite(encoded.synthesized):
            raise CheckpointError(
                f"{group.expert_name(expert)}: its values are too large for codec "
                f"{coder.label!r} in {group.dtype.name}; keep this group as it is (codec: keep)"
            )
        return {name: part.cpu() for name, part in encoded.parts.items()}, encoded.losses

    stored, parts, losses = decomposition.base.cpu(), list[Parts](), Losses()
    if placed is not None:
        placed.append("base", stored)
    # closed here, also where writing fails: threads and memory would stay with the error's frames
    with closing(decomposition.each(encode_one, threads, seen)) as encoded:
        for expert, (packed, lost) in enumerate(encoded):
            losses += lost
            if placed is None:
                parts.append(packed)
                continue
            for part, piece in packed.items():
                placed.append(fitted.part_name(expert, part), piece)
    tensors, lengths = fitted.stack(parts) if placed is None else ({}, {})
    return _Encoded(
        base,
        decomposition.bases,
        fitted,
        {"base": Stacked.whole(stored), **tensors} if placed is None else {},
        lengths,
        losses.squares,
        losses.output_error,
        losses.noise_cost if known.curvatures else None,
        losses.router_noise if known.routers else None,
        placed,
    )


def _stage(
    group: ExpertGroup,
    encoded: _Encoded,
    others: Mapping[str, float],
    parts: Mapping[str, Stacked],
    read: Mapping[str, str],
    task: EncodeTask,
    started: float,
) -> ReportEntry:
    """Write the group's tensors to their places or to a file, and the note. read: which weights
    were encoded, see `StagedGroup`."""
    # not synced: checksums are compared when another run uses the tensors
    if task.places is None:
        named = {f"{group.prefix}.{part}": tensor for part, tensor in parts.items()}
        specs = file_order({name: tensor.spec for name, tensor in named.items()})
        nbytes = sum(spec.nbytes for spec in specs.values())
        checksums = write_file(Path(task.staged), specs, lambda name: named[name].raw(), sync=False)
    else:
        placed = encoded.placed or PlacedGroup(group.prefix, task.places)
        for part, tensor in parts.items():
            for piece in tensor.pieces:
                placed.append(part, piece)
        nbytes, checksums = placed.nbytes, placed.checksums()
    entry = ReportEntry(
        *group.key,
        encoded.codec.label,
        group.nbytes,
        nbytes,
        *encoded.errors,
        time.monotonic() - started,
        encoded.base,
        others,
        encoded.output,
        encoded.codec.remark((group.shape[1], group.shape[2])),
        encoded.squares.gain,
        encoded.squares.noise,
        encoded.noise_cost,
        encoded.router_noise,
    )
    codecs, uses = encoded.codec.dump()
    note: dict[str, Any] = {
        "entry": asdict(entry),
        "codec": codecs,
        "uses": uses,
        "lengths": encoded.lengths,
        "bases": encoded.bases,
        "checksums": checksums,
        "by": writer_of(task.run),
        **read,
    }
    write_note(note_of(Path(task.staged)), note)
    return entry
