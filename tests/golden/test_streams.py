"""Streams of versions before 4 read the same for ever: with even and sensitive steps, of one level
and of many, lossless in every dtype. They are no longer written, and nothing else holds them all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ders_core.codecs import EncodeContext, Entropy, Lossless

STREAMS = Path(__file__).parent / "v3-streams.safetensors"
SHAPE = (48, 80)

with safe_open(STREAMS, "pt") as file:
    HASHES: dict[str, str] = file.metadata()
    TENSORS = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", sorted(HASHES))
def test_a_stream_of_version_3(name: str) -> None:
    parts = {"stream": TENSORS[f"{name}.stream"]}
    if name.startswith("lossless"):
        base = TENSORS[f"{name}.base"]
        weight = Lossless().unpack(parts, base, EncodeContext(base.dtype, 3))
    else:
        steps = "sensitive" if name.startswith("sensitive") else "even"
        codec = Entropy.model_validate({"bits": 1, "steps": steps})
        weight = codec.decode(parts, SHAPE, EncodeContext(torch.float32, 3))
    as_bytes = weight.contiguous().view(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(as_bytes).hexdigest() == HASHES[name]
