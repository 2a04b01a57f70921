"""How many bytes matrices take with each knob, told from how often each level occurs in a sample.

The sampled rows stay in memory; with a knob they are rounded and levels are counted, but nothing is
coded, and no error is measured or made up for. Where the coder makes up for errors, steps are as
coarse as it makes them then: that saves bits, and what it adds to values is small beside these. So
it tells how bytes change with the knob, and about how many they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

from ders_core.checkpoint import Checkpoint, MatrixStack, OtherTensor
from ders_core.codecs import Codec, EncodeContext, Entropy
from ders_core.codecs.fitting.compensated import left_of
from ders_core.codecs.tried_matrix import TriedDelta
from ders_core.compute.pools import in_order
from ders_core.compute.progress import Meter
from ders_core.compute.threads import in_this_mode, one_thread, one_thread_each, threads_for
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import without_base
from ders_core.errors import CodecError
from ders_core.later import torch
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.knowledge import group_knowledge, tensor_knowledge
from ders_core.pipeline.plan import OtherEntry, Plan, PlanEntry, stack_of
from ders_core.pipeline.sampling import USUAL
from ders_core.pipeline.stored_bases import members_of
from ders_core.units import number_text

PER_OCTAVE = 8
"""Knobs for which levels are counted; between them bytes are interpolated."""

FINEST, COARSEST = -60, 12
"""The knobs that are tried, as powers of 2."""

FINER = 2
"""Octaves: making up for errors can do with knobs that are so much too fine without it."""

LEAST_RATIO = 0.8
"""What is encoded takes at least such a share of what levels tell, and at most one by that; the
rest of a difference is taken for what the output holds beside it, of which the plan has bounds."""


@dataclass(frozen=True)
class SampledLevels:
    """Some rows of a matrix. codec: with the knob of the plan. share: of the rows. matrices: for
    how many this one stands. most: what the plan has for them."""

    delta: TriedDelta
    codec: Entropy
    context: EncodeContext
    share: float
    matrices: float
    most: float

    @property
    def entries(self) -> float:
        """Of all matrices that it stands for."""
        return self.matrices / self.share * self.delta.matrix.numel()

    def nbytes(self, factor: float) -> float:
        """Of all of them, each with the tables of its own, with so many times the knob. Raises
        CodecError if that is too fine."""
        assert self.codec.knob is not None
        codec = self.codec.model_copy(update={"knob": factor * self.codec.knob})
        copies = max(round(1 / self.share), 1)
        told = codec.told_bytes(self.delta, self.context, copies)
        return self.matrices / self.share * told / copies


class KnobBytes:
    """Bytes of a whole output as a function of the knob. Not for several threads.

    Reads the sample at once. plan, doubled: by a knob, the same for all, and by twice that; what is
    alike in both takes as much with any. at: the knob's logarithm to base 2. meter: told what is
    read, and for which knob levels are counted; may raise to stop.
    """

    def __init__(
        self, plan: Plan, doubled: Plan, at: float, checkpoint: Checkpoint, meter: Meter
    ) -> None:
        checkpoint.store.hold()
        with one_thread(), torch.inference_mode():  # sums as of `forecast`
            self._sample = list(_sampled(plan, doubled, checkpoint, meter))
        self._meter = meter
        self._zero, self._at = at, at
        self._counted = dict[int, float]()  # at 2^(n / PER_OCTAVE); infinite: too fine
        self._per_octave = sum(each.entries for each in self._sample) / 8  # where steps are fine
        self._beside = plan.bytes_after - sum(each.most for each in self._sample)
        self._ratio = 1.0  # of what is coded to what levels tell

    def correct(self, at: float, taken: float) -> None:
        """Learn what the whole output takes by a knob: from there bytes go as levels tell."""
        self._at, told = at, self._levels_at(at)
        if math.isfinite(told) and told > 0:
            ratio = (taken - self._beside) / told
            self._ratio = min(max(ratio, LEAST_RATIO), 1 / LEAST_RATIO)
            self._beside = taken - self._ratio * told

    def within(self, most: float) -> float:
        """The logarithm of the finest knob with which the whole takes at most so many bytes; that
        of the coarsest there is, if none does."""
        least, last = PER_OCTAVE * FINEST, PER_OCTAVE * COARSEST
        fine, coarse, looked_at = least - 1, last + 1, 0
        number = round(PER_OCTAVE * self._at)
        while number < last and self._levels(number) == math.inf:
            number += PER_OCTAVE
        while coarse - fine > 1:
            fine, coarse = (number, coarse) if self._told(number) > most else (fine, number)
            if fine == last:
                return COARSEST
            if coarse == least:
                return FINEST
            looked_at += 1
            if fine < least or coarse > last:
                number = min(max(number + self._ahead(number, most, looked_at), least), last)
            else:
                number = self._between(fine, coarse, most, is_halved=looked_at % 3 == 0)
        above, below = self._told(fine), self._told(coarse)
        share = (above - most) / (above - below) if most < above < math.inf else 1.0
        return (fine + share) / PER_OCTAVE

    def _ahead(self, number: int, most: float, looked_at: int) -> int:
        """How far to go from a number towards so many bytes: as where steps are fine, of which an
        octave is a bit an entry, and farther each time, as bytes go with the knob no more than
        that."""
        over = (self._told(number) - most) / (self._ratio * max(self._per_octave, 1.0))
        if not math.isfinite(over):
            return PER_OCTAVE
        steps = max(math.ceil(PER_OCTAVE * abs(over)), 1 << (looked_at - 1))
        return steps if over > 0 else -steps

    def _between(self, fine: int, coarse: int, most: float, *, is_halved: bool) -> int:
        """A number between two that are too fine and not, where the line through both tells; or the
        middle, as bytes go by no line."""
        above, below = self._told(fine), self._told(coarse)
        if is_halved or above == math.inf:
            return (fine + coarse) // 2
        told = fine + (above - most) / (above - below) * (coarse - fine)
        return min(max(math.floor(told), fine + 1), coarse - 1)

    @property
    def finest(self) -> float:
        """The logarithm of the finest knob that is not too fine without making up for errors, of
        those that were asked for and those between; that of the coarsest, if all were."""
        last = min(self._counted)
        finest = last if self._counted[last] < math.inf else self._finest_from(last)
        return COARSEST if finest is None else finest / PER_OCTAVE

    def _told(self, number: int) -> float:
        """Bytes of the whole output with the knob of a number."""
        return self._beside + self._ratio * self._levels(number)

    def _levels_at(self, at: float) -> float:
        """What levels tell of any knob."""
        place = PER_OCTAVE * at
        first = math.floor(place)
        finer, coarser = self._levels(first), self._levels(first + 1)
        if finer == math.inf:
            return coarser
        return finer + (place - first) * (coarser - finer)

    def _levels(self, number: int) -> float:
        """The same of a number. Where the knob is too fine, an octave is a bit an entry from the
        finest that is not; infinite further on, and before one is known."""
        counted = self._known(number)
        finest = number if counted < math.inf else self._finest_from(number)
        if finest is None or finest - number > PER_OCTAVE * FINER:
            return math.inf
        return self._known(finest) + (finest - number) / PER_OCTAVE * self._per_octave

    def _finest_from(self, number: int) -> int | None:
        """The number of the finest knob that is not too fine; None if none is known that is coarser
        than this one, which is."""
        known = [n for n, counted in self._counted.items() if n > number and counted < math.inf]
        if not known:
            return None
        finest = min(known)
        beyond = max(n for n, counted in self._counted.items() if n < finest)
        while finest - beyond > 1:
            middle = (finest + beyond) // 2
            is_too_fine = self._known(middle) == math.inf
            finest, beyond = (finest, middle) if is_too_fine else (middle, beyond)
        return finest

    def _known(self, number: int) -> float:
        """What is counted for a number, once; infinite if the knob is too fine."""
        if number not in self._counted:
            at = number / PER_OCTAVE
            self._meter.report(f"counting levels for knob {number_text(2**at)}")
            self._counted[number] = self._count(2 ** (at - self._zero))
        return self._counted[number]

    def _count(self, factor: float) -> float:
        """With so many times the knob of the plan."""
        device, shape = torch.device("cpu"), (1, USUAL.values)
        most = max((each.codec.working_bytes(shape) for each in self._sample), default=0)
        threads = threads_for(len(self._sample), most, device)

        def count(each: SampledLevels) -> float:
            return each.nbytes(factor)

        try:
            with (
                one_thread(),
                torch.inference_mode(),
                one_thread_each(threads, device) as pool,
            ):
                return math.fsum(in_order(pool, in_this_mode(count), self._sample, threads))
        except CodecError:
            return math.inf


def _sampled(
    plan: Plan, doubled: Plan, checkpoint: Checkpoint, meter: Meter
) -> Iterator[SampledLevels]:
    """What is coded otherwise in the second plan, and what `forecast` encodes a sample of."""
    recipe = plan.recipe
    assert recipe.calibration is not None, "a knob needs one"
    calibration = Calibration.open(recipe.calibration)
    if not recipe.base.files:
        for entry, other in zip(plan.entries, doubled.entries, strict=True):
            if entry.can_be_sampled and (entry.codec, entry.base) != (other.codec, other.base):
                meter.report(f"reading layer {entry.layer}, {entry.projection}")
                yield from _of_group(entry, other, checkpoint, plan, calibration)
    for coded, again in zip(plan.others, doubled.others, strict=True):
        if coded.codec != again.codec:
            meter.report(f"reading {coded.name}")
            yield from _of_tensor(coded, checkpoint, plan, calibration)


def _makes_up(codec: Codec) -> bool:
    """Whether later columns make up for errors, by moments of the inputs."""
    return isinstance(codec, Entropy) and codec.rounding == "compensated"


def _counted_context(codec: Entropy, context: EncodeContext) -> EncodeContext:
    """What levels are counted by: no second moments, which of all matrices would take gigabytes,
    but what they leave of errors where a codec makes up for these."""
    curvature, moments = context.curvature, context.moments
    is_made_up = _makes_up(codec) and moments is not None and moments.dim() == 2
    if is_made_up and curvature is not None and curvature.total > 0:
        curvature = left_of(curvature, cast(torch.Tensor, moments))
    return replace(context, curvature=curvature, moments=None)


def _of_group(
    entry: PlanEntry,
    other: PlanEntry,
    checkpoint: Checkpoint,
    plan: Plan,
    calibration: Calibration,
) -> Iterator[SampledLevels]:
    """Deltas and bases that `other` codes otherwise. Of bases of several kinds, the first."""
    recipe = plan.recipe
    group = checkpoint.group(*entry.key, recipe.extended)
    rows = USUAL.rows(group)
    changed = [
        number for number in rows.chosen if entry.codec.expert(number) != other.codec.expert(number)
    ]
    is_made_up = any(_makes_up(entry.codec.expert(number)) for number in changed)
    known = group_knowledge(group, calibration, with_own=is_made_up)
    known = known.of_rows(rows.pieces, rows.share)
    context = BaseContext("cpu", calibration.tokens_per_expert)
    some = recipe.base.decompositions(group.of_rows(rows.pieces), context)
    _, decomposition = next(iter(some))
    each = group.shape[0] / len(rows.chosen)
    for number in changed:
        own = known.context(decomposition.group, number, recipe.seed)
        codec = entry.codec.expert(number)
        yield _levels_of(decomposition.delta(number), codec, own, group, rows.share, each)
    if entry.base is None or entry.base == other.base:
        return
    codec, base = entry.base.codec, decomposition.base
    for number, matrix in enumerate([base] if decomposition.bases is None else base):
        sharing = members_of(decomposition, number)
        own = known.base_context(decomposition.group, number, sharing, recipe.seed)
        yield _levels_of(matrix.float(), codec, own, group, rows.share, 1)


def _of_tensor(
    coded: OtherEntry, checkpoint: Checkpoint, plan: Plan, calibration: Calibration
) -> Iterator[SampledLevels]:
    recipe = plan.recipe
    stack = cast(OtherTensor, stack_of(checkpoint, recipe, coded.key))
    rows = USUAL.rows(stack)
    known = tensor_knowledge(stack, calibration).of_rows(rows.pieces, rows.share)
    decomposition = without_base(stack.of_rows(rows.pieces), "cpu")
    each = stack.shape[0] / len(rows.chosen)
    for number in rows.chosen:
        own = known.context(decomposition.group, number, recipe.seed)
        delta = decomposition.delta(number)
        yield _levels_of(delta, coded.codec, own, stack, rows.share, each)


def _levels_of(
    delta: torch.Tensor,
    codec: Codec,
    context: EncodeContext,
    stack: MatrixStack,
    share: float,
    matrices: float,
) -> SampledLevels:
    """delta: of sampled rows. share, matrices: as of `SampledLevels`."""
    assert isinstance(codec, Entropy), "it has a knob"
    parts = codec.parts((stack.shape[1], stack.shape[2]), stack.dtype)
    most = matrices * sum(parts[name].nbytes for name in codec.ragged)
    counted = _counted_context(codec, context)
    return SampledLevels(TriedDelta(delta), codec, counted, share, matrices, most)
