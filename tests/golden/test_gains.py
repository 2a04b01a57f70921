"""Streams of `entropy` with gains, byte by byte, as docs/format.md has it: what is compressed has
none, so no golden checkpoint holds any."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from ders_core.codecs import EncodeContext, Entropy
from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.gains import Gains

SHAPE = (3, 5)
ROWS, COLUMNS = [8, 1, 15], [8, 12, 4, 9, 1]
GAINS = bytes.fromhex("0000003e 188f 0000803e c89481")
"""⅛, the codes of three rows, ¼, and those of five columns."""

HEAD, ONE_LEVEL, ALONE = b"\xff\xff", bytes.fromhex("0000003f"), b"\0\0"
FORMS = {
    "even": (b"\x2f", b"\1\0", 1.0),
    "steps": (b"\x3f", bytes.fromhex("cc01 01 8020 c001 01 8020 01 00 01"), 2.0 / 4),
}
"""Byte of the form; numbers up to the levels, of which there is one, ½; the product of all steps:
2^(4/4) of rows, 2^(−8/4) of columns."""


def tensor_of(stream: bytes) -> torch.Tensor:
    return torch.tensor([*stream], dtype=torch.uint8)


def streams(form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(with gains, without)."""
    byte, numbers, _ = FORMS[form]
    plain = bytes([byte[0] - 32])
    with_gains = HEAD + byte + numbers + ONE_LEVEL + GAINS + ALONE
    without = HEAD + plain + numbers + ONE_LEVEL + ALONE
    return tensor_of(with_gains), tensor_of(without)


def factors(stream: bytes, begin: int, count: int) -> list[float]:
    """As docs/format.md has it: a unit, and four bits each, the first of two in the lower half."""
    (unit,) = struct.unpack_from("<f", stream, begin)
    halves = [half for byte in stream[begin + 4 :] for half in (byte % 16, byte // 16)]
    return [1 + unit * (half - 8) for half in halves[:count]]


@pytest.mark.parametrize("form", FORMS)
def test_what_they_stand_for(form: str) -> None:
    stream, _ = streams(form)
    found = Entropy(bits=8).decode({"stream": stream}, SHAPE, EncodeContext(torch.float32, 0))
    begin = stream.numpy().tobytes().index(GAINS)
    rows = factors(stream.numpy().tobytes(), begin, 3)
    columns = factors(stream.numpy().tobytes(), begin + 4 + 2, 5)
    assert (rows, columns) == ([1, 0.125, 1.875], [1, 2, 0, 1.25, -0.75])
    wanted = 0.5 * FORMS[form][2] * torch.tensor(rows).unsqueeze(1) * torch.tensor(columns)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_how_they_are_written(form: str) -> None:
    with_gains, without = streams(form)
    vectors = (
        np.float32(1) + np.float32(unit) * (np.array(codes, np.float32) - 8)
        for unit, codes in ((1 / 8, ROWS), (1 / 4, COLUMNS))
    )
    written = level_stream.with_values(without, SHAPE, torch.tensor([0.5]), Gains(*vectors))
    assert torch.equal(written, with_gains)
