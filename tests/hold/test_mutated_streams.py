"""Coded streams that were damaged or forged: refused in one sentence, or read as other weights.

Compiled loops check no index. Numpy, which does, reads the same streams: both must refuse, or give
the same weights, bit by bit. Damage is more likely where heads and tables are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

import pytest
import torch
from support.codec_support import gauss
from support.mutations import damaged_bytes
from support.seeded_attacks import refusals
from support.two_readings import is_refused

from ders_core.codecs import Codec, EncodeContext, Entropy, Lossless
from ders_core.codecs.testing.inputs import curvature

SHAPE = (24, 60)
SHAPES = (SHAPE, SHAPE, SHAPE, SHAPE, (60, 24), (1, 1), (24, 61), (3, 480))

HEAD = 60
"""Bytes that hold most of what is not words."""


@dataclass(frozen=True)
class Target:
    """base: what weights are near to. spread: how far they are from it, in its values."""

    codec: Codec
    dtype: torch.dtype = torch.bfloat16
    spread: float = 1.0


def unbiased(bits: float, steps: str = "even") -> Entropy:
    return Entropy.model_validate({"bits": bits, "rounding": "unbiased", "steps": steps})


TARGETS: Mapping[str, Target] = {
    "gaps": Target(unbiased(0.3)),
    "symbols": Target(unbiased(2)),
    "rare levels": Target(unbiased(7), torch.float32),
    "many classes": Target(unbiased(1.2, "sensitive")),
    "fine classes": Target(unbiased(6, "sensitive"), torch.float16),
    "nearest": Target(Entropy(bits=0.8)),
    "lossless": Target(Lossless(), torch.bfloat16, 0.003),
    "lossless, noise": Target(Lossless(), torch.float32, 1e-6),
    "lossless, far": Target(Lossless(), torch.float16, 0.0005),
}


def mutated(rng: Random, content: bytes) -> bytes:
    """Of a stream: anywhere, or in its head by single bytes and bits."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, content)
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = rng.randrange(min(len(changed), HEAD) if rng.random() < 0.7 else len(changed))
        changed[place] = rng.choice(
            (0, 255, 128, 127, changed[place] ^ 1 << rng.randrange(8), rng.randrange(256))
        )
    return bytes(changed)


def attack(target: Target, stream: torch.Tensor, base: torch.Tensor, seed: int) -> bool:
    """Damage the stream as the seed says, and read it twice; whether it was refused."""
    rng = Random(f"{target} {seed}")
    damaged = bytearray(mutated(rng, stream.numpy().tobytes()))
    parts = {"stream": torch.frombuffer(damaged or bytearray(1), dtype=torch.uint8)}
    parts["stream"] = parts["stream"][: len(damaged)]
    shape = rng.choice(SHAPES)
    near = base.flatten().repeat(2)[: shape[0] * shape[1]].view(shape)
    return is_refused(target.codec, parts, near)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_streams_are_refused_or_read_alike(
    name: str, rounds: Callable[[int, int], int], tally: Counter[str]
) -> None:
    target = TARGETS[name]
    base = gauss(SHAPE, 1, 1.0).to(target.dtype)
    weight = base.double() + gauss(SHAPE, 2, target.spread)
    if name.endswith("far"):
        weight[3, ::9] *= 30
    context = EncodeContext(target.dtype, 5, None, curvature(SHAPE))
    stream = target.codec.pack(weight.to(target.dtype), base, context)["stream"]
    assert isinstance(target.codec, Entropy) or int(stream[0]) == 2

    def one(seed: int) -> bool:
        tally["damaged streams"] += 1
        return attack(target, stream, base, seed)

    assert refusals(name, range(rounds(25, 20_000)), one) > 0, "nothing was damaged"
