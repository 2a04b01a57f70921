"""`lossless`: every bit, whatever the values; and fewer bytes where experts are close."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import context, gauss

from ders_core.codecs import Lossless
from ders_core.codecs.coding import difference_stream, differences, rans
from ders_core.codecs.lossless import CODED
from ders_core.codecs.testing.inputs import DTYPES
from ders_core.codecs.testing.packing import check_promise
from ders_core.compute import kernels
from ders_core.compute.kernels import rans_rounds
from ders_core.errors import CodecError

INTEGERS = {2: torch.int16, 4: torch.int32}


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INTEGERS[tensor.element_size()])


def packed(weight: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The stream; checks that it gives every bit back."""
    codec, model_context = Lossless(), context(weight.dtype)
    parts = codec.pack(weight, base, model_context)
    check_promise(codec, parts, (weight.shape[0], weight.shape[1]), weight.dtype)
    decoded = codec.unpack(parts, base, model_context)
    assert decoded.dtype is weight.dtype
    assert torch.equal(bits_of(decoded), bits_of(weight))
    return parts["stream"]


def read_by_both(weight: torch.Tensor, base: torch.Tensor) -> None:
    """Fails unless loops and numpy alike give every bit back, coded."""
    codec, model_context = Lossless(), context(weight.dtype)
    parts = codec.pack(weight, base, model_context)
    assert int(parts["stream"][0]) == CODED
    for compiled in (True, False):
        with patch("ders_core.compute.kernels._installed", return_value=compiled):
            decoded = codec.unpack(parts, base, model_context)
        assert torch.equal(bits_of(decoded), bits_of(weight))


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    out=st.integers(0, 12),
    width=st.integers(0, 12),
    data=st.data(),
)
def test_any_finite_bits_come_back(
    dtype: torch.dtype, out: int, width: int, data: st.DataObject
) -> None:
    """−0, subnormals and the largest numbers among them."""
    seed = data.draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    half = 1 << (8 * dtype.itemsize - 1)
    pair = []
    for _ in range(2):
        raw = torch.randint(-half, half, (out, width), generator=generator)
        values = raw.to(INTEGERS[dtype.itemsize]).view(dtype)
        special = torch.tensor([0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 2])
        chosen = special[torch.randint(4, (out, width), generator=generator)].to(dtype)
        plain = torch.isfinite(values) & (torch.rand((out, width), generator=generator) < 0.7)
        pair.append(torch.where(plain, values, chosen))
    packed(*pair)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 1 / 300, 1 / 30, 1.0])
def test_close_experts_take_less(dtype: torch.dtype, share: float) -> None:
    """Fewer bytes the closer they are. The bound is what is left of each number beyond the bits
    that base and expert have in common: with a deviation of `share` of the weights', log2 of
    1 / share bits less than the dtype's; and bfloat16's exponent has few values."""
    base = gauss((256, 300), 0, 0.02).to(dtype)
    weight = (base.float() + gauss((256, 300), 1, 0.02 * share)).to(dtype)
    bits = 8 * packed(weight, base).numel() / weight.numel()
    width = 8 * dtype.itemsize
    if share == 0:
        assert bits < 0.05
    elif share < 1:
        assert bits < width - math.log2(1 / share) - (4 if dtype is torch.bfloat16 else -2)
    assert bits <= width + 8 / weight.numel()


def test_upcycled_bfloat16_is_near_its_conditional_entropy() -> None:
    """Against the entropy of the steps given the exponent of the base, counted by numpy."""
    base = gauss((512, 700), 0, 0.02).bfloat16()
    weight = (base.float() + gauss((512, 700), 1, 0.0006)).bfloat16()
    got = 8 * packed(weight, base).numel() / weight.numel()

    def ordered(values: torch.Tensor) -> Any:
        raw = values.flatten().view(torch.int16).numpy().astype(np.int64)
        return np.where(raw < 0, -32768 - raw - 1, raw)

    steps = ordered(weight) - ordered(base)
    exponent = base.flatten().view(torch.int16).numpy().astype(np.int64) >> 7 & 255
    entropy = 0.0
    for binade in np.unique(exponent):
        counts = np.unique(steps[exponent == binade], return_counts=True)[1]
        entropy += (counts * np.log2(counts.sum() / counts)).sum()
    assert got < 1.08 * entropy / len(steps)  # tables included
    assert got < 7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_would_not_shrink_is_stored_as_it_is(dtype: torch.dtype) -> None:
    half = 1 << (8 * dtype.itemsize - 1)
    raw = torch.randint(-half, half, (2, 40, 50), generator=torch.Generator().manual_seed(0))
    noise = raw.to(INTEGERS[dtype.itemsize]).view(dtype)
    noise = torch.where(torch.isfinite(noise), noise, torch.ones_like(noise))
    assert packed(noise[0], noise[1]).numel() <= 1 + noise[0].nbytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.03, 0.5])
def test_loops_write_the_same_bytes_over_several_pieces(
    dtype: torch.dtype, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a compiler, both directions, of odd length; with low bits, rare differences and some
    that have no symbol."""
    shape = (290, 461)
    assert math.prod(shape) > 2 * differences.PIECE
    base = gauss(shape, 0, 0.02).to(dtype)
    weight = (base.float() + gauss(shape, 1, 0.02 * share)).to(dtype)
    weight[::50, ::30] *= -3e4
    base[:, -20:] = weight[:, -20:]
    whole = packed(weight, base)
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    assert torch.equal(packed(weight, base), whole)


def test_rounds_know_the_bits_of_usual_tables() -> None:
    assert rans_rounds.USUAL_BITS == rans.BITS


def read_as_the_page_says(stream: bytes, base: torch.Tensor) -> list[int]:
    """docs/format.md in Python's integers: the bits of bfloat16 weights, signed."""
    data = iter(stream)

    def small() -> int:
        digits: list[int] = []
        while not digits or digits[-1] >= 128:
            digits.append(next(data))
        return sum((digit & 127) << 7 * place for place, digit in enumerate(digits))

    def signed() -> int:
        number = small()
        return -(number + 1) // 2 if number % 2 else number // 2

    def counted(number: int) -> int:
        return -(1 << 15) - 1 - number if number < 0 else number

    assert next(data) == 2
    lows_and_firsts, tables = [], []  # tables of usual and of rare levels
    for _ in range(16):
        low, levels = small(), small()
        if not levels:
            lows_and_firsts.append((low, 0))
            tables.append(([1 << 12], [1 << 14]))
            continue
        first, start, span = signed(), small(), small()
        numbers = [0] * start + [small() for _ in range(span)] + [0] * (levels - start - span)
        usual = [0 if number % 2 else number // 2 for number in numbers]
        rare = [number // 2 if number % 2 else 0 for number in numbers]
        lows_and_firsts.append((low, first))
        tables.append(([*usual, (1 << 12) - sum(usual)], rare))
    far = iter([signed() for _ in range(small())])
    noise = iter(
        [byte >> bit & 1 for byte in [next(data) for _ in range(small())] for bit in range(8)]
    )
    lanes = 1 << next(data)
    x = [int.from_bytes(bytes(next(data) for _ in range(4)), "little") for _ in range(lanes)]
    slots = [
        [[(n, i) for n, f in enumerate(table) for i in range(f)] for table in pair]
        for pair in tables
    ]

    def pop(number: int, which: int, rare: int) -> int:
        lane, size = number % lanes, (1 << 12, 1 << 14)[rare]
        symbol, within = slots[which][rare][x[lane] % size]
        x[lane] = tables[which][rare][symbol] * (x[lane] // size) + within
        if x[lane] < 2**16:
            x[lane] = x[lane] * 2**16 + next(data) + 256 * next(data)
        return symbol

    bits = base.flatten().view(torch.int16).tolist()
    exponents = [number >> 7 & 255 for number in bits]
    top = max(exponents)
    contexts = [min(top - exponent, 15) for exponent in exponents]
    found = []
    for begin in range(0, len(bits), 1 << 16):
        here = contexts[begin : begin + (1 << 16)]
        levels_of = [pop(number, which, 0) for number, which in enumerate(here)]
        escapes = [
            number
            for number, which in enumerate(here)
            if levels_of[number] == len(tables[which][0]) - 1
        ]
        for number, place in enumerate(escapes):
            levels_of[place] = pop(number, here[place], 1)
        for number, which in enumerate(here):
            low, first = lows_and_firsts[which]
            is_far = levels_of[number] == len(tables[which][0]) - 2
            upper = next(far) if is_far else first + levels_of[number]
            low_bits = sum(next(noise) << bit for bit in range(low))
            found.append(counted(counted(bits[begin + number]) + (upper << low) + low_bits))
    assert not list(data)
    assert not any(noise)
    assert x == [1 << 16] * lanes
    return found


def test_streams_are_as_the_page_says() -> None:
    """More than a piece; with low bits, rare levels and some that are far."""
    base = gauss((1, 66000), 0, 0.02).bfloat16()
    weight = (base.float() + gauss((1, 66000), 1, 0.005)).bfloat16()
    weight[:, ::9000] *= -3e4
    stream = bytes(packed(weight, base).tolist())
    assert read_as_the_page_says(stream, base) == bits_of(weight).flatten().tolist()


@pytest.mark.parametrize("lanes_log2", [0, 3, 4, 6])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounds_of_few_and_many_lanes_read_the_same(dtype: torch.dtype, lanes_log2: int) -> None:
    """Each way in which loops read: with symbols in several rounds, the last of which is not whole;
    by numpy too; with low bits of few and of all weights, rare differences and far ones."""
    base = gauss((31, 67), 0, 0.02).to(dtype)
    weight = (base.float() + gauss((31, 67), 1, 0.0006)).to(dtype)
    weight[::7, ::30] *= -3e4
    for start in (base, torch.zeros_like(base)):
        with patch.object(difference_stream, "lanes_log2_of", return_value=lanes_log2):
            read_by_both(weight, start)


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, 10**6),
    flip=st.integers(1, 255),
    cut=st.booleans(),
    lanes_log2=st.sampled_from([0, 2, 5]),
    dtype=st.sampled_from(DTYPES),
)
def test_damaged_streams_are_refused_or_read_as_others(
    place: int, flip: int, cut: bool, lanes_log2: int, dtype: torch.dtype
) -> None:
    """By loops and by numpy alike: the same weights, or a refusal of both."""
    base = gauss((20, 30), 0, 0.02).to(dtype)
    weight = (base.float() + gauss((20, 30), 1, 0.0006)).to(dtype)
    codec, model_context = Lossless(), context(dtype)
    with patch.object(difference_stream, "lanes_log2_of", return_value=lanes_log2):
        stream = codec.pack(weight, base, model_context)["stream"].clone()
    at = place % len(stream)
    if cut:
        stream = stream[:at]
    else:
        stream[at] ^= flip
    outcomes, refusals = [], set()
    for compiled in (True, False):
        with patch("ders_core.compute.kernels._installed", return_value=compiled):
            try:
                outcomes.append(bits_of(codec.unpack({"stream": stream}, base, model_context)))
            except CodecError as error:
                outcomes.append(torch.zeros(0))
                refusals.add(str(error))
    assert all("damaged" in refusal for refusal in refusals)
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_from_the_largest_base(dtype: torch.dtype) -> None:
    """Low bits of what is far count from its own place, and not from the base, above which there
    is no room for them."""
    generator = torch.Generator().manual_seed(0)
    weight = 2 * torch.rand(4, 1 << 14, generator=generator)
    weight.flatten()[::5000] = -1 - torch.rand(14, generator=generator)
    read_by_both(weight.to(dtype), torch.full_like(weight, torch.finfo(dtype).max, dtype=dtype))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    below=st.integers(0, 300),
    is_low=st.booleans(),
    every=st.integers(100, 900),
    narrower=st.integers(2, 6),
    seed=st.integers(0, 2**31),
)
def test_bases_near_the_ends_of_the_dtype(
    dtype: torch.dtype, below: int, is_low: bool, every: int, narrower: int, seed: int
) -> None:
    """Base and most weights have one sign, few weights the other; with low bits."""
    integers, generator = INTEGERS[dtype.itemsize], torch.Generator().manual_seed(seed)
    largest = int(bits_of(torch.tensor([torch.finfo(dtype).max], dtype=dtype)))
    sign = -1 << 8 * dtype.itemsize - 1
    base = largest - torch.randint(below + 1, (64, 100), generator=generator)
    weight = torch.randint(-sign >> narrower - 1, base.shape, generator=generator)
    weight.flatten()[::every] += sign
    if is_low:
        base, weight = base ^ sign, weight ^ sign
    read_by_both(*(bits.to(integers).view(dtype) for bits in (weight, base)))
