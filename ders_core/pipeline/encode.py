"""Encode one group, or one tensor outside the experts: the unit of work that any process, on any
device, can do alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ders_core.checkpoint import Checkpoint, ExpertGroup, MatrixStack, OtherTensor
from ders_core.checkpoint.digest import WeightsDigest
from ders_core.checkpoint.held import Holding, first_held, held
from ders_core.checkpoint.room import ROOM, Turn
from ders_core.codecs.group import GroupCodec, Stacked
from ders_core.compute.buffers import keep_small_blocks, return_small_blocks
from ders_core.compute.threads import one_thread, threads_for
from ders_core.compute.tracebacks import memory_goes_back
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import Decomposition, without_base
from ders_core.files.cache import opened
from ders_core.files.cold_reads import reading_again
from ders_core.files.inputs import Held, same_inputs
from ders_core.files.tensor import FileTensor
from ders_core.later import torch
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.appended import Appended, Behind, write_variable
from ders_core.pipeline.base_choice import bits_to_spare, is_doubtful, pays
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.encoded_note import report_of, told_of
from ders_core.pipeline.encoder import Encoder, Encoding
from ders_core.pipeline.holding import holding_of, left_free
from ders_core.pipeline.knowledge import group_knowledge, tensor_knowledge
from ders_core.pipeline.next_base import next_base
from ders_core.pipeline.notes import note_of, write_note
from ders_core.pipeline.own_files import bytes_of
from ders_core.pipeline.placed import PlacedGroup
from ders_core.pipeline.plan import Key, base_form, stack_of
from ders_core.pipeline.report import OtherReport, ReportEntry
from ders_core.recipe import Recipe

WITHOUT = "none"
"""What reports call the base of a stack without any."""


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
    """All that a process needs to encode one group or another tensor. It is pickled, so it holds
    values and no open files.

    key: which. device: where to encode what a GPU can (see `GroupCodec.device_of`). places: where
    to write its tensors, by their full names. behind: what others are appended behind; None if
    there are none, or they are staged. staged: the file to write then, by whose name the note
    beside it goes. run: a name of the run that the task belongs to. ahead: the key of
    what is encoded soon after; its bytes are read beforehand. is_first: whether no task does that
    for this one. groups: how many are encoded in all.
    removal: as of `EncodeContext`, of each expert; fewer where it is not known of the last. held:
    the files that the run has opened, which the task must read.
    """

    source: CheckpointRef
    recipe: Recipe
    key: Key
    device: str
    staged: str
    places: Mapping[str, FileTensor] = field(default_factory=dict)
    behind: Behind | None = None
    run: str = ""
    ahead: Key | None = None
    is_first: bool = False
    groups: int = 1
    removal: tuple[float, ...] = ()
    held: Held = field(default=Held(), repr=False)

    @property
    def is_placed(self) -> bool:
        """Whether every tensor has a place before it is encoded."""
        return bool(self.places) and self.behind is None


def encode(task: EncodeTask) -> ReportEntry | OtherReport:
    """Decompose and encode one group, or encode another tensor. Writes its tensors, and beside
    them a note in JSON of what the manifest and the report say about it, and of the weights that
    were read. Raises CheckpointError, also if a file was written meanwhile, CodecError,
    OutputError."""
    started = time.monotonic()
    keep_small_blocks()
    digest = WeightsDigest()
    with same_inputs(task.held), one_thread(), torch.inference_mode(), memory_goes_back():
        checkpoint = task.source.open()
        checkpoint.store.hold()
        stack = stack_of(checkpoint, task.recipe, task.key)
        best, others = _encoded(stack, task, checkpoint, digest)
        parts = dict(best.tensors)
        if stack.added:
            parts["bias"] = Stacked.whole(stack.read_biases())
        digest.add_biases(stack)
    read = {"sha256": digest.sha256, "version": checkpoint.store.version}
    nbytes, appended, checksums = _write(stack, best, parts, task)
    report = report_of(stack, best, others, nbytes, time.monotonic() - started)
    told = told_of(best, report, checksums, task.run) | {"appended": appended.dump()} | read
    write_note(note_of(Path(task.staged)), told, staged=appended.is_staged)
    return report


def _encoded(
    stack: MatrixStack, task: EncodeTask, checkpoint: Checkpoint, digest: WeightsDigest
) -> tuple[Encoding, dict[str, float]]:
    """The best encoding, and the errors of others (see `_best`). digest: gets the weights once."""
    recipe = task.recipe
    holding = _holding(stack, task) if isinstance(stack, ExpertGroup) else None
    if task.is_first and holding is None:
        stack.read_ahead()
    calibration = Calibration.open(recipe.calibration) if recipe.calibration else None
    if isinstance(stack, OtherTensor):
        codec = GroupCodec.same(recipe.codec_of_tensor(stack), stack.shape[0])
        device = codec.device_of(task.device)
        known, form = tensor_knowledge(stack, calibration), None
        tried = iter([(WITHOUT, without_base(stack, device))])
    else:
        assert isinstance(stack, ExpertGroup)
        codec = _codec_of(stack, task)
        if codec.keeps:
            return _kept(stack, codec, digest), {}
        device = codec.device_of(task.device)
        known = group_knowledge(
            stack, calibration, task.removal, task.groups, recipe.base.is_stored
        )
        form = base_form(recipe, stack)
        following = next_base()
        begun = following.take(_group_of(task, task.key)) if following is not None else None
        if begun is not None and holding is not None:
            return_small_blocks()  # of the group before, which is done with by now
        tried = begun or _decompositions(stack, task, calibration, holding, ROOM.at_once())
    known = known.on(device)
    threads = _threads(stack, codec, device)
    encoder = Encoder.of(recipe, codec, form, known, threads, holding)
    placed = PlacedGroup(stack.prefix, task.places) if task.is_placed else None
    ahead = None if task.ahead is None else stack_of(checkpoint, recipe, task.ahead)
    seen: Callable[[torch.Tensor], None] = digest.add
    prepare = ahead.read_ahead if ahead is not None else None
    finished: Callable[[int], None] | None = None
    if isinstance(ahead, ExpertGroup):
        next_holding = _holding(ahead, task)
        if next_holding is None and encoder.threads > 1:
            seen = _and_begin(ahead, task, calibration, digest, stack.shape[0], encoder.threads)
        if next_holding is not None and holding is not None:
            # the weights and moments of this group are in memory then, and not those of the next
            at_most = min(next_holding.ahead, holding.ahead)
            next_holding = replace(next_holding, ahead=at_most)
            prepare = partial(_read_next, ahead, task, calibration, next_holding)
            finished = partial(_leave, stack, holding, next_holding, encoder.threads)
    best, others = _best(_each(tried, encoder, prepare, seen, placed, finished))
    if not recipe.base.is_optional:
        return best, others
    return _or_none(best, others, stack, encoder, device)


def _or_none(
    best: Encoding,
    others: dict[str, float],
    stack: MatrixStack,
    encoder: Encoder,
    device: torch.device,
) -> tuple[Encoding, dict[str, float]]:
    """The stack without a base, if the best one does not pay."""
    if best.form is None:
        return best, others
    least = bits_to_spare(stack.shape, best.form, stack.dtype)
    if not is_doubtful(best.squares, least):
        return best, others
    alone = replace(encoder, form=None, known=replace(encoder.known, shrinks=False))
    plain = alone.encode(WITHOUT, without_base(stack, device))
    if pays(best.loss, plain.loss, least):
        return best, others | {WITHOUT: plain.errors[1]}
    return plain, others | {best.base: best.errors[1]}


def _decompositions(
    group: ExpertGroup,
    task: EncodeTask,
    calibration: Calibration | None,
    holding: Holding | None,
    turn: Turn,
) -> Iterator[tuple[str, Decomposition]]:
    """holding: of a large group; what it says is read here. turn: of the group."""
    base, device = task.recipe.base, _codec_of(group, task).device_of(task.device)
    context = BaseContext(device, calibration.tokens_per_expert if calibration else None)
    if holding is not None:
        with reading_again():
            group.read_ahead(holding.count)
        group = first_held(group, holding, turn)
    elif base.is_stored and device.type == "cpu":  # a GPU copies from pinned memory
        group = held(group)
    return base.decompositions(group, context)


def _codec_of(group: ExpertGroup, task: EncodeTask) -> GroupCodec:
    return task.recipe.group_codec(*group.key, group.shape[0])


def _holding(group: ExpertGroup, task: EncodeTask) -> Holding | None:
    """In the thread of the task: it depends on how many threads there are. None where tasks do not
    follow one another: others beside this one would hold as much."""
    if next_base() is None:
        return None
    return holding_of(group, task.recipe, _codec_of(group, task), task.device)


def _read_next(
    ahead: ExpertGroup, task: EncodeTask, calibration: Calibration | None, next_holding: Holding
) -> None:
    """Begin to read the group ahead into the memory that this one leaves."""
    following = next_base()
    assert following is not None, "else nothing is held"
    begin = partial(_decompositions, ahead, task, calibration, next_holding)
    following.read(_group_of(task, ahead.key), begin)


def _leave(
    group: MatrixStack, holding: Holding, next_holding: Holding, threads: int, unfinished: int
) -> None:
    """Let what is read ahead have the memory that a held group's last experts do not need."""
    if (following := next_base()) is not None:
        following.may_take(left_free(group, holding, next_holding, threads, unfinished))


def _group_of(task: EncodeTask, key: Key) -> object:
    """What stands for a group that is decomposed as this task says."""
    return task.source, task.recipe, key, task.device


def _and_begin(
    ahead: ExpertGroup,
    task: EncodeTask,
    calibration: Calibration | None,
    digest: WeightsDigest,
    count: int,
    threads: int,
) -> Callable[[torch.Tensor], None]:
    """What gives the digest a matrix, and begins with the group ahead at the last one of `count`,
    if that comes next in this thread. threads: how many there is memory for."""
    following, seen, codec = next_base(), 0, _codec_of(ahead, task)

    def add(matrix: torch.Tensor) -> None:
        nonlocal seen
        seen += 1
        if seen == count and following is not None and not codec.keeps:
            following.begin(
                _group_of(task, ahead.key),
                lambda: _decompositions(ahead, task, calibration, None, ROOM.at_once()),
                threads,
            )
        digest.add(matrix)

    return add


def _threads(stack: MatrixStack, codec: GroupCodec, device: torch.device) -> int:
    count, out, width = stack.shape
    return threads_for(count, codec.working_bytes((out, width)), device)


def _each(
    tried: Iterator[tuple[str, Decomposition]],
    encoder: Encoder,
    prepare: Callable[[], None] | None,
    seen: Callable[[torch.Tensor], None] | None,
    placed: PlacedGroup | None,
    finished: Callable[[int], None] | None,
) -> Iterator[Encoding]:
    """The stack against each base that is offered. prepare: called once the first base is made, for
    what is encoded next. seen: called with each matrix once. finished: as of `Encoder.encode`."""
    for name, decomposition in tried:
        if prepare is not None:
            prepare()
            prepare = None
        yield encoder.encode(name, decomposition, seen, placed, finished)
        seen = placed = None  # another base that is better is written over the first one


def _kept(group: ExpertGroup, codec: GroupCodec, digest: WeightsDigest) -> Encoding:
    """A group whose experts all stay as they are."""
    matrices = [matrix.read() for matrix in group.experts]
    for matrix in matrices:
        digest.add(matrix)
    return Encoding("none", codec, {"weight": Stacked.over_experts(matrices)}, {})


def _best(tried: Iterator[Encoding]) -> tuple[Encoding, dict[str, float]]:
    """The first one with the least loss, and ‖Ŵ−W‖/‖W‖ of the others by the names of their bases.
    At most two are in memory."""
    best = next(tried)
    errors = {best.base: best.errors[1]}
    for encoded in tried:
        errors[encoded.base] = encoded.errors[1]
        best = min(best, encoded, key=lambda candidate: candidate.loss)
    del errors[best.base]
    return best, errors


def _write(
    stack: MatrixStack, encoded: Encoding, parts: Mapping[str, Stacked], task: EncodeTask
) -> tuple[int, Appended, dict[str, str]]:
    """Write the tensors to their places, and the others as `write_variable` does; their bytes, what
    the note says of the others, and checksums by name."""
    # not synced: checksums are compared when another run uses the tensors
    placed = encoded.placed or PlacedGroup(stack.prefix, task.places)
    variable = dict[str, Stacked]()
    for part, tensor in parts.items():
        name = f"{stack.prefix}.{part}"
        if name in task.places:
            placed.append_all({part: tensor})
        else:
            variable[name] = tensor
    if variable and task.is_placed:
        raise AssertionError(f"no place for {sorted(variable)}")
    appended, checksums = write_variable(Path(task.staged), variable, task.behind)
    return placed.nbytes + bytes_of(appended.specs), appended, placed.checksums() | checksums
