"""Matrices that are packed together on a GPU, which would else be waited for with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.codecs import Codec, DeltaCodec, EncodeContext, Parts
from ders_core.codecs.group import GroupCodec
from ders_core.codecs.synthesis import difference
from ders_core.compute.checks import Check, checked_later
from ders_core.later import torch


@dataclass(frozen=True)
class Packed:
    """parts: of one matrix. checks: what is still to be checked of it, and perhaps of those after
    it."""

    parts: Parts
    checks: Sequence[Check] = ()


def packed_alone(
    codec: Codec, weight: torch.Tensor, start: torch.Tensor, context: EncodeContext
) -> Packed:
    """One matrix; start: what its delta is taken against. Raises CodecError."""
    with checked_later() as checks:
        return Packed(codec.pack(weight, start, context), checks)


def packed_each(
    codec: Codec,
    weights: Sequence[torch.Tensor],
    starts: Sequence[torch.Tensor],
    contexts: Sequence[EncodeContext],
) -> list[Parts]:
    """Matrices of one shape on one device, as `Codec.pack` packs them. Raises CodecError."""
    if isinstance(codec, DeltaCodec) and codec.is_encoded_together:
        return codec.encode_each([*map(difference, weights, starts)], contexts)
    return [*map(codec.pack, weights, starts, contexts)]


def packed_together(
    codecs: GroupCodec,
    experts: Sequence[int],
    weights: Sequence[torch.Tensor],
    starts: Sequence[torch.Tensor],
    contexts: Sequence[EncodeContext],
) -> list[Packed]:
    """Experts of a group, those of each codec together. experts: their numbers. The rest: as of
    `packed_each`, of each of them. Raises CodecError."""
    packed: dict[int, Packed] = {}
    for number, codec in enumerate(codecs.codecs):
        places = [place for place, expert in enumerate(experts) if codecs.uses[expert] == number]
        with checked_later() as checks:
            each = packed_each(
                codec,
                [weights[place] for place in places],
                [starts[place] for place in places],
                [contexts[place] for place in places],
            )
        for place, parts in zip(places, each, strict=True):
            packed[place] = Packed(parts, checks)
            checks = []
    return [packed[place] for place in range(len(experts))]
