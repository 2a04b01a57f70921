"""Parts of every codec that were damaged: refused in one sentence, or read as other weights, the
same by compiled loops as by numpy and torch. (`test_mutated_streams.py` goes deeper where all is in
one stream.)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
import torch
from support.codec_support import gauss
from support.mutations import damaged_bytes
from support.seeded_attacks import refusals
from support.two_readings import is_refused

from ders_core.codecs import CODECS, Codec, EncodeContext, make_codec
from ders_core.codecs.codec import Parts

SHAPE = (24, 60)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def examples(name: str) -> list[Codec]:
    """A codec of each kind that needs no calibration."""
    cls = CODECS.find(name)
    made = [make_codec({"codec": name, **fields}) for fields in cls.examples or ({},)]
    return [codec for codec in made if codec.needs_of_calibration == "nothing"]


def damaged(rng: Random, codec: Codec, parts: Parts) -> Parts:
    """With other bytes in one of the parts; only where the data decide, of another length."""
    name = rng.choice(sorted(name for name in parts if parts[name].numel()))
    part = parts[name]
    before = part.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    after = bytearray(damaged_bytes(rng, before))
    if name not in codec.ragged:
        after = (after + bytearray(before[len(after) :]))[: len(before)]
    shape = part.shape
    if name in codec.ragged:
        row = part.dtype.itemsize * shape[1:].numel()
        after = after[: len(after) // row * row]
        shape = torch.Size([len(after) // row, *shape[1:]])
    if not after:
        return {**parts, name: part.new_empty(shape)}
    return {**parts, name: torch.frombuffer(after, dtype=part.dtype).view(shape)}


@pytest.mark.parametrize("name", sorted(CODECS))
def test_damaged_parts_are_refused_or_read_alike(
    name: str, rounds: Callable[[int, int], int], tally: Counter[str]
) -> None:
    for number, codec in enumerate(examples(name)):
        dtype = DTYPES[number % len(DTYPES)]
        base = gauss(SHAPE, 1, 1.0).to(dtype)
        weight = (base.double() + gauss(SHAPE, 2, 0.1)).to(dtype)
        settled = codec.fit([weight.float() - base.float()])
        parts = settled.pack(weight, base, EncodeContext(dtype, 5))
        assert not is_refused(settled, parts, base)

        def one(
            seed: str, settled: Codec = settled, parts: Parts = parts, base: torch.Tensor = base
        ) -> bool:
            tally["damaged parts"] += 1
            return is_refused(settled, damaged(Random(seed), settled, parts), base)

        refusals(name, [f"{codec.label} {seed}" for seed in range(rounds(1, 2000))], one)
