"""A sample of a stack's rows and matrices, encoded: what foretells the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ders_core.checkpoint import Checkpoint, MatrixStack
from ders_core.codecs import Parts
from ders_core.codecs.group import GroupCodec
from ders_core.compute.pools import in_order
from ders_core.compute.threads import (
    available_threads,
    in_this_mode,
    one_thread_each,
    shared_out_to,
    threads_for,
)
from ders_core.decompose.decomposition import Decomposition
from ders_core.files.dtype import Dtype
from ders_core.pipeline.encoder import Encoder
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.stored_bases import StoredBases

R = TypeVar("R")

SAMPLE = 1 << 17
"""Values of an expert that are encoded, about."""

BLOCK = 16
"""Rows that are read at once."""

EXPERTS = 4
"""Experts of a group that are encoded, at most; more with a larger sample."""


@dataclass(frozen=True)
class Extent:
    """How much of a checkpoint is encoded to foretell what all of it will take and lose.

    values: of each matrix, about, by which bytes are told; tables weigh the more, the fewer they
    are. judged: how many of them losses are told by, which takes longer than to encode them; with
    0, bytes alone are told. experts: of a group, at most.
    """

    values: int
    judged: int
    experts: int

    @classmethod
    def of_all(cls, checkpoint: Checkpoint) -> Extent:
        """All rows of all experts."""
        most = checkpoint.bytes_total
        return cls(most, most, most)

    def with_all_rows(self, stack: MatrixStack) -> Extent:
        """All rows of as many experts, but of EXPERTS at most."""
        _, out, width = stack.shape
        return Extent(out * width, out * width, min(self.experts, EXPERTS))

    def rows(self, stack: MatrixStack) -> Rows:
        return Rows.of_some(stack, self.values, self.experts)

    def judged_rows(self, stack: MatrixStack) -> Rows | None:
        """Those by which losses are told, if they are."""
        return Rows.of_some(stack, self.judged, self.experts) if self.judged else None


USUAL = Extent(SAMPLE, SAMPLE, EXPERTS)

LARGER = Extent(8 * SAMPLE, SAMPLE, 8 * EXPERTS)
"""Tables weigh less in it, and experts are not alike. Rows with as many entries lose about as much
as their curvature says, so that more of them would tell losses no better."""

BYTES_ALONE = replace(LARGER, judged=0)
"""The bytes that `LARGER` tells."""


@dataclass(frozen=True)
class Rows:
    """What is encoded of a stack. pieces: of the rows of each matrix; share: of all rows. chosen:
    which matrices. whole: by what figures of the sample are multiplied for the whole."""

    pieces: list[slice]
    share: float
    chosen: list[int]
    whole: float

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self.whole == 1

    @classmethod
    def of_some(cls, stack: MatrixStack, sample: int, most: int) -> Rows:
        """Of at most so many matrices. sample: values of each, about."""
        count, out, width = stack.shape
        pieces = spread(out, max(sample // width, 1))
        share = sum(piece.stop - piece.start for piece in pieces) / out
        chosen = evenly(count, most)
        return cls(pieces, share, chosen, count / len(chosen) / share)


@dataclass(frozen=True)
class SampledMatrix:
    """One matrix of a sample as it was encoded, or tried. ragged: bytes of parts whose length
    depends on the data."""

    losses: Losses
    ragged: int


def encoded_sample(
    encoder: Encoder,
    decomposition: Decomposition,
    chosen: Sequence[int],
) -> tuple[StoredBases, list[SampledMatrix]]:
    """The bases, and each chosen matrix; several at once, in threads of their own. Raises
    CheckpointError and CodecError."""
    stored, fitted = encoder.prepared(decomposition)

    def encode_one(number: int) -> SampledMatrix:
        encoded = encoder.one(stored, fitted, number, decomposition.weight(number))
        return SampledMatrix(encoded.losses, _ragged(fitted, number, encoded.parts))

    return stored, _of_each(encode_one, decomposition, fitted, chosen)


def packed_sample(
    encoder: Encoder,
    decomposition: Decomposition,
    chosen: Sequence[int],
) -> tuple[StoredBases, int]:
    """The bases, and the bytes of the chosen matrices' parts whose length depends on the data, but
    not what is lost; otherwise as `encoded_sample`."""
    stored, fitted = encoder.prepared(decomposition)

    def pack_one(number: int) -> int:
        parts = encoder.packed(stored, fitted, number, decomposition.weight(number))
        return _ragged(fitted, number, parts)

    return stored, sum(_of_each(pack_one, decomposition, fitted, chosen))


def _of_each(
    work: Callable[[int], R],
    decomposition: Decomposition,
    fitted: GroupCodec,
    chosen: Sequence[int],
) -> list[R]:
    _, out, width = decomposition.group.shape
    device = decomposition.base.device
    threads = threads_for(len(chosen), fitted.working_bytes((out, width)), device)
    share = available_threads() // threads

    def work_on(number: int) -> R:
        with shared_out_to(share):
            return work(number)

    if threads == 1:
        return [work_on(number) for number in chosen]
    with one_thread_each(threads, device) as pool:
        return list(in_order(pool, in_this_mode(work_on), chosen, threads))


def _ragged(fitted: GroupCodec, number: int, parts: Parts) -> int:
    return sum(parts[name].nbytes for name in fitted.expert(number).ragged)


def foretold_bytes(codec: GroupCodec, shape: tuple[int, int], dtype: Dtype, ragged: float) -> int:
    """Of a stack's parts, for matrices `[out, in]`. ragged: what those take, of the whole, whose
    length depends on the data."""
    most = codec.ragged_bytes(shape, dtype)
    fixed = sum(spec.nbytes for spec in codec.specs(shape, dtype).values()) - most
    return fixed + min(round(ragged), most)


def spread(out: int, count: int) -> list[slice]:
    """About `count` of `out` rows, in blocks spread evenly."""
    if count >= out:
        return [slice(0, out)]
    blocks = max(count // BLOCK, 1)
    length = min(max(count // blocks, 1), out // blocks)
    starts = (number * out // blocks for number in range(blocks))
    return [slice(start, start + length) for start in starts]


def evenly(matrices: int, most: int) -> list[int]:
    """Matrices to encode, spread evenly."""
    count = min(matrices, most)
    return [number * matrices // count for number in range(count)]
