"""A sample of a stack's rows and matrices, encoded: what foretells the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.checkpoint import MatrixStack
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
from ders_core.pipeline.encoder import Encoder, StoredBases
from ders_core.pipeline.judge import Losses

SAMPLE = 1 << 17
"""Values of an expert that are encoded, about."""

BLOCK = 16
"""Rows that are read at once."""

EXPERTS = 4
"""Experts of a group that are encoded, at most; more with a larger sample."""


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
    def of(cls, stack: MatrixStack, sample: int) -> Rows:
        """sample: values of a matrix, about."""
        return cls.of_some(stack, sample, EXPERTS * max(sample // SAMPLE, 1))

    @classmethod
    def of_some(cls, stack: MatrixStack, sample: int, most: int) -> Rows:
        """Of at most so many matrices. sample: values of each, about."""
        _, out, width = stack.shape
        return cls._of(stack, spread(out, max(sample // width, 1)), most)

    @classmethod
    def all_of_some(cls, stack: MatrixStack) -> Rows:
        """All rows of a few matrices."""
        return cls._of(stack, [slice(0, stack.shape[1])], EXPERTS)

    @classmethod
    def _of(cls, stack: MatrixStack, pieces: list[slice], most: int) -> Rows:
        count, out, _ = stack.shape
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
    _, out, width = decomposition.group.shape
    device = decomposition.base.device
    threads = threads_for(len(chosen), fitted.working_bytes((out, width)), device)
    share = available_threads() // threads

    def encode_one(number: int) -> SampledMatrix:
        with shared_out_to(share):
            encoded = encoder.one(stored, fitted, number, decomposition.weight(number))
        ragged = sum(encoded.parts[name].nbytes for name in fitted.expert(number).ragged)
        return SampledMatrix(encoded.losses, ragged)

    if threads == 1:
        return stored, [encode_one(number) for number in chosen]
    with one_thread_each(threads, device) as pool:
        return stored, list(in_order(pool, in_this_mode(encode_one), chosen, threads))


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
