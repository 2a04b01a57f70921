"""How many experts of a large group are held in memory, so that they are read once."""

from __future__ import annotations

from ders_core.checkpoint import ExpertGroup, MatrixStack
from ders_core.checkpoint.held import Holding, is_plain, is_small
from ders_core.checkpoint.side_by_side import UNUSED
from ders_core.checkpoint.stacks import CACHED_SLAB_BYTES
from ders_core.checkpoint.streaming import CACHED_SLABS, SLAB_BYTES, SLABS
from ders_core.codecs.group import GroupCodec
from ders_core.compute.threads import HELPING_BYTES, available_threads, threads_for
from ders_core.pipeline.needed_beside import needed_beside
from ders_core.pipeline.plan import base_form
from ders_core.recipe import Recipe

MOST_BYTES = 1_130_000_000
"""What held experts, bases and what threads need beside them take at most, all together: with
torch, compiled loops and what the allocator keeps, up to 490 MB, a process stays within about
1.6 GB, as its tasks follow one another. All eight experts of Mixtral's size fit."""

KEPT_BYTES = 64_000_000
"""What the allocator keeps of the memory of a thread that is done with its last expert."""


def holding_of(
    group: ExpertGroup, recipe: Recipe, codec: GroupCodec, device: str
) -> Holding | None:
    """What is held of a large group from before its base is made until its deltas are encoded; None
    where nothing is. device: as of `EncodeTask`.

    Nothing is if less than half would fit, with what codecs need, which is more with a calibration,
    if not one expert could be read ahead, or if two that are done with do not leave room for all
    threads: what the system reads ahead serves better then. Nor where a group is encoded on a GPU,
    whose copies come from pinned memory; where bases are coded, tried one after another, or made of
    whole experts; nor of a source whose numbers are computed, or that is at an address.
    """
    base, form = recipe.base, base_form(recipe, group)
    where = codec.device_of(device)
    if is_small(group) or codec.keeps or where.type != "cpu" or not is_plain(group):
        return None
    if form is None or form.is_coded or not base.is_made_in_slabs or base.is_optional:
        return None
    experts, out, width = group.shape
    matrix = out * width * group.dtype.itemsize
    beside, shared = needed_beside(group, recipe, codec)
    threads = threads_for(experts, codec.working_bytes((out, width)), where)
    slabs = SLABS * SLAB_BYTES
    if form.count is None:
        slabs = min(available_threads(), CACHED_SLABS) * CACHED_SLAB_BYTES
    left = MOST_BYTES - (form.count or 1) * matrix - shared
    helping = HELPING_BYTES if recipe.calibration else 0  # with moments
    if available_threads() > threads:  # the others help all the time
        left, helping = left - threads * helping, 0
    # Count with room for every thread. Count with room for one instead where that holds all
    # experts, or where the first count is half of them or fewer; then threads wait at first
    # (`Encoder`).
    count, alone = (
        min((left - max(each * beside, slabs)) // matrix, experts) for each in (threads, 1)
    )
    if alone == experts or count <= experts // 2:
        count = alone
    if count <= experts // 2:
        return None
    # what is read ahead leaves room for all threads, for what waits to be written, and for what is
    # not held
    waiting = UNUSED * codec.packed_bytes((out, width), group.dtype)
    ahead = left - threads * beside - waiting - min(threads + 1, experts - count) * matrix
    if ahead < matrix or (count - 2) * matrix + threads * beside > left:
        return None
    return Holding(count, min(ahead, count * matrix), beside, left, helping)


def left_free(
    group: MatrixStack, holding: Holding, next_holding: Holding, threads: int, unfinished: int
) -> int:
    """Bytes that the group ahead may take beyond `next_holding.ahead`, once so many experts of this
    one are not finished: what idle threads and finished buffers do not need any more. At most what
    is missing of all its held experts, whose matrices are as large. threads: as of
    `Decomposition.each`."""
    experts, out, width = group.shape
    matrix, working = out * width * group.dtype.itemsize, min(threads, unfinished)
    idle = (threads - working) * (holding.beside - KEPT_BYTES) - working * holding.helping
    buffers = min(threads + 1, experts - holding.count)
    # one thread keeps its buffers until all experts are encoded
    finished = buffers - min(buffers, unfinished) if threads > 1 else 0
    return min(max(idle, 0) + finished * matrix, next_holding.count * matrix - next_holding.ahead)
