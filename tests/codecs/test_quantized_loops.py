"""Compiled loops of `quantized` against the same in plain torch, bit by bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import context, gauss

from ders_core.codecs import EncodeContext, Quantized
from ders_core.codecs.codec import Parts
from ders_core.codecs.coding.packing import pack, pack_trits, unpack, unpack_trits
from ders_core.codecs.fitting import lines as fitting_lines
from ders_core.codecs.fitting import scales
from ders_core.codecs.fitting.block_codes import BlockCodes
from ders_core.codecs.fitting.levels import Levels, normal, ternary, uniform
from ders_core.codecs.fitting.lloyd import learnt
from ders_core.codecs.synthesis import difference
from ders_core.codecs.testing.inputs import DTYPES, curvature
from ders_core.compute import kernels
from ders_core.compute.sums import halved_sum
from ders_core.compute.threads import one_thread, threads_of_torch

T = TypeVar("T")
LONG = bool(os.environ.get("DERS_HOLD_LONG"))

CLOSE = Levels(torch.tensor([0.0, 0, 0, 0.5, 1, 1, 1 + 1e-7, 1 + 2e-7] + [2.0] * 24), False)
"""Some are equal, and some too close for bins of values."""

LEVELS = [
    *(uniform(2**bits) for bits in (1, 2, 3, 4, 8)),
    ternary(),
    *(normal(bits) for bits in (1, 2, 4, 5, 8)),
    Levels(learnt(gauss((50, 100)), 3), uniform=False),
    CLOSE,
]
GRIDS: list[dict[str, Any]] = [
    *({"bits": bits} for bits in (1, 2, 3, 4, 8)),
    {"bits": 6, "scale_bits": 8},
    {"grid": "ternary"},
    {"bits": 3, "grid": "affine"},
    {"bits": 1, "grid": "affine", "scale_bits": 8},
    {"bits": 4, "grid": "normal"},
    {"bits": 6, "grid": "normal", "scale_bits": 8},
    {"bits": 2, "grid": "learned"},
    {"bits": 4, "grid": "learned", "scale_bits": 8, "gain": 0.9},
    {"bits": 7, "grid": "learned"},
    {"bits": 1, "gain": "unbiased"},
    {"grid": "ternary", "scale_bits": 8, "gain": "auto"},
    {"bits": 2, "grid": "affine", "gain": 0.9},
    {"bits": 5, "grid": "affine", "scale_bits": 8, "gain": "unbiased"},
    {"bits": 3, "gain": "unbiased", "scale_bits": 8},
]


def plainly(work: Callable[[], T]) -> T:
    with patch("ders_core.compute.kernels._installed", return_value=False):
        return work()


def blocks(seed: int, shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """Values as they come; on a coarse grid, so that many are halfway between levels; with
    outliers; with blocks of zeros; and from the least to the largest that there are."""
    values = gauss(shape, seed, 1e-3)
    if kind == "grid":
        return (values * 2e3).round() / 1024
    if kind == "outliers":
        return values * gauss(shape, seed + 1, 1.0).exp().square()
    if kind == "zeros":
        return values * (gauss((*shape[:-1], 1), seed + 1) > 0)
    if kind == "extremes":
        sizes = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 1e-20, 1.0, -1e30, 3e38])
        return sizes[(gauss(shape, seed, 3.0).abs() * 7).long() % 8]
    return values


KINDS = ("usual", "grid", "outliers", "zeros", "extremes")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_eight_blocks_at_once(bits: int, size: int) -> None:
    """Each gets the scale that it gets alone, and that of plain torch: of usual, coarse, empty and
    nearly empty blocks, of any magnitude."""
    values = gauss((21, size), bits, 1.0) * 10.0 ** gauss((21, 1), size, 5.0)
    values[3], values[5, 2:], values[6:9] = 0.0, 0.0, values[6:9].sign()
    values[9:14] = (gauss((5, size), 9, 2.0)).round()
    levels = uniform(2**bits)
    found = scales.best_scales(values, None, levels)
    alone = torch.cat([scales.best_scales(block, None, levels) for block in values.split(1)])
    assert torch.equal(found, alone)
    assert torch.equal(found, plainly(lambda: scales.best_scales(values, None, levels)))


@pytest.mark.parametrize("levels", LEVELS, ids=lambda levels: f"{levels.count}-{levels.uniform}")
@settings(deadline=None, max_examples=400 if LONG else 12)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 9),
    per_row=st.integers(1, 3),
    size=st.sampled_from([1, 2, 3, 5, 8, 16, 17, 20, 32, 64, 100, 128, 256, 700]),
    kind=st.sampled_from(KINDS),
    weighed=st.sampled_from(["no", "columns", "blocks", "padded", "wide"]),
)
def test_scales_and_lines(
    levels: Levels, seed: int, rows: int, per_row: int, size: int, kind: str, weighed: str
) -> None:
    values = blocks(seed, (rows, per_row, size), kind)
    weights = None
    if weighed != "no":
        shape = (1, 1 if weighed == "columns" else per_row, size)
        weights = gauss(shape, seed, 1.0).abs() + 0.01
        if weighed == "wide":
            weights = 10.0 ** (3 * weights - 6).clamp_max(3)
        if weighed == "padded":
            weights *= gauss(shape, seed + 1) > 0
            weights[..., 0] = 1
            values = torch.where(weights > 0, values, 0.0)  # as padding
    heights = scales.weights_of_blocks(weights, values)
    assert heights is not None
    assert kernels.takes(values, heights)
    found = scales.best_scales(values, weights, levels)
    assert torch.equal(found, plainly(lambda: scales.best_scales(values, weights, levels)))
    if levels.uniform and kind != "extremes":  # differences of these are beyond float32
        from_zero = uniform(levels.count, centred=False)
        lines = fitting_lines.best_lines(values, weights, from_zero)
        wanted = plainly(lambda: fitting_lines.best_lines(values, weights, from_zero))
        assert all(map(torch.equal, lines, wanted))


def same(left: Parts, right: Parts) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and torch.equal(bits_of(left[name]), bits_of(right[name]))
        for name in left
    )


def bits_of(part: torch.Tensor) -> torch.Tensor:
    """Its bytes: zeros of either sign differ."""
    return part.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("fields", GRIDS, ids=lambda fields: "-".join(map(str, fields.values())))
@settings(deadline=None, max_examples=300 if LONG else 8)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(
        [(0, 5), (5, 0), (1, 1), (37, 1), (13, 29), (8, 131), (40, 64), (300, 128), (3, 300)]
    ),
    group_size=st.sampled_from([0, 1, 7, 32, 128]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["usual", "grid", "outliers", "zeros"]),
    known=st.booleans(),
)
def test_the_codec(
    fields: dict[str, Any],
    seed: int,
    shape: tuple[int, int],
    group_size: int,
    dtype: torch.dtype,
    kind: str,
    known: bool,
) -> None:
    """Parts, weights and deltas, of matrices that lie in memory or across it; in plain torch a few
    rows at a time."""
    codec = Quantized(**fields, group_size=group_size)
    base = gauss(shape, seed + 2, 0.1).to(dtype)
    weight = (base.float() + blocks(seed, shape, kind)).to(dtype)
    knowledge = EncodeContext(dtype, 5, None, curvature(shape) if known and min(shape) else None)

    def round_trip(weight: torch.Tensor, base: torch.Tensor) -> tuple[Parts, ...]:
        parts = codec.pack(weight, base, knowledge)
        synthesized = codec.unpack(parts, base, knowledge)
        return parts, {"weight": synthesized, "delta": codec.decode(parts, shape, knowledge)}

    with patch("ders_core.codecs.fitting.block_codes.CHUNK", 1000):
        wanted = plainly(lambda: round_trip(weight, base))
    assert all(map(same, round_trip(weight, base), wanted))
    across = weight.T.contiguous().T, base.T.contiguous().T
    assert all(map(same, round_trip(*across), wanted))


@pytest.mark.parametrize("group_size", [32, 44, 0])
@pytest.mark.parametrize("fields", GRIDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_every_grid_passes_once(
    fields: dict[str, Any], group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that fill rows, or do not; by any number of threads, weighed or not."""
    codec, shape = Quantized(**fields, group_size=group_size), (75, 96)
    base = gauss(shape).bfloat16()
    weight, delta = (base.float() + gauss(shape, 1, 0.01)).bfloat16(), gauss(shape, 2)
    monkeypatch.setattr(BlockCodes, "_in_several_passes", None)
    monkeypatch.setattr("ders_core.compute.row_pieces.LEAST", 1)
    for importance in (None, torch.arange(96.0)):
        knowledge = EncodeContext(torch.bfloat16, 5, importance)
        found = []
        for threads in (1, 4):
            with threads_of_torch(threads), one_thread():
                found += [codec.pack(weight, base, knowledge), codec.encode(delta, knowledge)]
        assert same(found[0], found[2])
        assert same(found[1], found[3])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_learnt_alike(kind: str, bits: int) -> None:
    """Of a few values, fewer than there are levels, and of many; weighed or not."""
    for count in (1, 5, 300, 20_000):
        values = blocks(bits, (count,), kind).clamp(-1e30, 1e30)
        for weights in (None, gauss((count,), 7).abs()):
            looped = learnt(values, bits, weights)
            plain = plainly(partial(learnt, values, bits, weights))
            assert torch.equal(looped.view(torch.int32), plain.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_float_is_converted_as_torch_does(dtype: torch.dtype) -> None:
    """Of 16 bits each one, of 32 bits many; also what is no number. And from float32, with sums
    that lie halfway between two floats, beside these, and beyond all."""
    if dtype == torch.float32:
        every = torch.from_numpy(np.random.default_rng(0).integers(-(2**31), 2**31, 1 << 16))
        stored = every.to(torch.int32).view(dtype)
    else:
        stored = torch.arange(1 << 16).to(torch.int16).view(dtype)
    zeros = torch.zeros_like(stored)
    delta = difference(stored.view(256, 256), zeros.view(256, 256)).flatten()
    wanted = stored.float() - 0.0
    numbers = ~wanted.isnan()
    assert torch.equal(delta.isnan(), ~numbers)
    assert torch.equal(delta.view(torch.int32)[numbers], wanted.view(torch.int32)[numbers])
    base = stored.view(256, 256)
    step = wanted.nan_to_num(0, 0, 0).abs().view(256, 256) * 2.0**-9
    codec, knowledge = Quantized(bits=1, group_size=1), context(torch.float32)
    for share in (0.0, 0.5, 1.0, 1.0 + 2**-20, -1.5):
        parts = {
            "scales": (step * share).abs().clamp_max(3e38),
            "codes": pack(torch.full((1 << 16,), int(share > 0), dtype=torch.uint8), 1),
        }
        weight = codec.unpack(parts, base, knowledge)
        plain = plainly(partial(codec.unpack, parts, base, knowledge))
        numbers = ~plain.isnan()
        assert torch.equal(weight.isnan(), ~numbers)
        whole = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(weight[numbers].view(whole), plain[numbers].view(whole))


@pytest.mark.parametrize("width", [256, 300])
@pytest.mark.parametrize("fields", GRIDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_deltas_beyond_float32_leave_weights_that_are_not_finite(
    fields: dict[str, Any], width: int
) -> None:
    """Which whoever encodes refuses by name: no index is read outside of a table. Other rows are as
    they would be, unless levels or a gain are those of the whole matrix."""
    codec = Quantized(**fields)
    weight, base = gauss((16, width)), gauss((16, width), 1)
    weight[3, 5], base[3, 5], weight[3, 6], base[3, 6] = 3e38, -3e38, -3e38, 3e38

    def bad_rows() -> list[int]:
        synthesized = codec.unpack(codec.pack(weight, base, context()), base, context())
        return (~synthesized.isfinite()).any(1).nonzero().flatten().tolist()

    assert 3 in bad_rows()
    assert 3 in plainly(bad_rows)
    if fields.get("grid") != "learned" and fields.get("gain") != "auto":
        assert bad_rows() == plainly(bad_rows) == [3]


@settings(deadline=None, max_examples=2000 if LONG else 30)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 70), bits=st.integers(1, 8))
def test_planes_and_trits(seed: int, count: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    codes = torch.from_numpy(random.integers(0, 2**bits, count).astype(np.uint8))
    trits = torch.from_numpy(random.integers(0, 3, count).astype(np.uint8))
    packed = pack(codes, bits)
    assert torch.equal(packed, plainly(lambda: pack(codes, bits)))
    assert torch.equal(unpack(packed, bits, count, torch.uint8), codes)
    assert torch.equal(pack_trits(trits), plainly(lambda: pack_trits(trits)))
    assert torch.equal(unpack_trits(pack_trits(trits), count), trits)


@settings(deadline=None, max_examples=2000 if LONG else 30)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), max_size=70))
def test_a_sum_in_halves_is_a_sum(values: list[float]) -> None:
    terms = torch.tensor([values, values[::-1]], dtype=torch.float32)
    rounding = 8 * 2.0**-24 * sum(map(abs, values)) + 1e-37
    assert halved_sum(terms).double().tolist() == pytest.approx([sum(values)] * 2, abs=rounding)
    assert halved_sum(torch.tensor([2.0**24, 1, 1, 1, 1, 1, 1, 1])) == 2**24  # one after another


def test_several_threads_at_once() -> None:
    """Loops keep nothing between calls: each thread gets what it gets alone."""
    codecs = [Quantized(**fields) for fields in GRIDS[:12]]
    deltas = [gauss((24, 300), number) for number in range(len(codecs))]
    alone = [
        codec.encode(delta, context(torch.bfloat16))
        for codec, delta in zip(codecs, deltas, strict=True)
    ]
    together: dict[int, Parts] = {}

    def work(number: int) -> None:
        together[number] = codecs[number].encode(deltas[number], context(torch.bfloat16))

    threads = [Thread(target=work, args=(number,)) for number in range(len(codecs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(together[number], alone[number]) for number in range(len(codecs)))


def test_what_autograd_tracks_and_odd_dtypes_take_the_plain_path() -> None:
    weight = gauss((8, 16)).requires_grad_()
    assert not kernels.takes(weight)
    wide = gauss((8, 16)).double()
    assert not kernels.takes_stored(wide, wide)
    assert not kernels.takes_stored(wide.float(), wide.bfloat16())
    assert torch.equal(difference(wide, wide.float()), torch.zeros(8, 16))


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("rows", [3, 24])
def test_zeros_of_either_sign_have_a_scale_of_plus_zero(bits: int, rows: int) -> None:
    """A sign of it would reach weights that are −0."""
    generator = torch.Generator().manual_seed(bits)
    delta = torch.where(torch.rand(rows, 128, generator=generator) < 0.5, -0.0, 0.0)
    codec = Quantized(bits=bits, group_size=32)
    base = torch.full_like(delta, -0.0)
    for parts in (codec.encode(delta, context()), codec.pack(delta, base, context())):
        assert not parts["scales"].signbit().any()
