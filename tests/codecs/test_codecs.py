"""Each codec against an independent reference in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs import (
    CODECS,
    DeltaCodec,
    EncodeContext,
    Keep,
    LowRank,
    Parts,
    Quantized,
    Sparse,
    codec_class,
    make_codec,
)
from ders_core.codecs.prng import random_positions
from ders_core.errors import CodecError

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
STRENGTHS: list[dict[str, Any]] = [
    {"codec": "sparse", "drop_rate": 0.0},
    {"codec": "sparse", "drop_rate": 0.5},
    {"codec": "sparse", "drop_rate": 0.9},
    {"codec": "sparse", "drop_rate": 0.999},
    {"codec": "sparse", "drop_rate": 0.3, "method": "magnitude"},
    {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
    {"codec": "sparse", "drop_rate": 0.99, "method": "magnitude"},
    *({"codec": "quantized", "bits": bits, "group_size": 5} for bits in range(1, 9)),
    {"codec": "quantized", "bits": 2},
    {"codec": "quantized", "bits": 3, "group_size": 0},
    {"codec": "lowrank", "rank": 1},
    {"codec": "lowrank", "rank": 7},
    {"codec": "lowrank", "energy": 0.9},
    {"codec": "sparse", "pattern": "2:4"},
    {"codec": "sparse", "drop_rate": 0.8, "method": "della", "value_bits": 8},
    {"codec": "sparse", "drop_rate": 0.8, "method": "magnitude", "budget": "row", "value_bits": 4},
    {"codec": "quantized", "grid": "ternary"},
    {"codec": "quantized", "bits": 3, "grid": "affine"},
    {"codec": "quantized", "bits": 3, "grid": "normal", "scale_bits": 8},
    {"codec": "quantized", "bits": 3, "grid": "learned"},
    {"codec": "entropy", "bits": 1.5},
    {"codec": "lowrank", "rank": 3, "factor_bits": 4, "leading": 1},
    {"codec": "lowrank", "bits": 2.0},
]
NAMED = [pytest.param(fields, id=make_codec(fields).label) for fields in STRENGTHS]
SHAPES = [(1, 1), (1, 37), (37, 1), (13, 29), (29, 13), (16, 128), (8, 131), (130, 2)]


def gauss(shape: tuple[int, ...], seed: int = 0, scale: float = 1e-2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def context(dtype: torch.dtype = torch.float32, seed: int = 5) -> EncodeContext:
    return EncodeContext(dtype, seed)


def double(tensor: torch.Tensor) -> Any:
    return tensor.to(torch.float64).numpy()


def round_trip(
    codec: DeltaCodec, delta: torch.Tensor, how: EncodeContext
) -> tuple[Parts, torch.Tensor]:
    """The parts and the decoded delta; checks that the parts are what was promised."""
    shape = (delta.shape[0], delta.shape[1])
    before = delta.clone()
    parts = codec.encode(delta, how)
    assert torch.equal(delta, before), "encode changed its input"
    promised = codec.parts(shape, how.dtype)
    assert parts.keys() == promised.keys()
    for name, tensor in parts.items():
        assert tensor.dtype == promised[name].dtype
        if name in codec.ragged:
            assert len(tensor) <= promised[name].shape[0]
            assert tensor.shape[1:] == promised[name].shape[1:]
        else:
            assert tuple(tensor.shape) == promised[name].shape
    decoded = codec.decode(parts, shape, how)
    assert decoded.dtype is torch.float32
    assert tuple(decoded.shape) == shape
    return parts, decoded


@pytest.mark.parametrize("fields", NAMED)
@settings(max_examples=25, deadline=None)
@given(
    out=st.integers(1, 24),
    width=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**62 - 1),
)
def test_parts_are_what_encode_writes(
    fields: dict[str, Any], out: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    delta = gauss((out, width), seed % 1000)
    codec = make_codec(fields).fit([delta, delta * 0.5])
    assert codec.settled
    parts, decoded = round_trip(codec, delta, context(dtype, seed))
    assert bool(torch.isfinite(decoded).all())
    again = codec.encode(delta, context(dtype, seed))
    assert all(torch.equal(again[name], parts[name]) for name in parts), "not deterministic"
    assert make_codec(codec.dump()) == codec


@pytest.mark.parametrize("fields", NAMED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_stay_zeros(
    fields: dict[str, Any], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    delta = torch.zeros(shape)
    codec = make_codec(fields).fit([delta, delta])
    assert not round_trip(codec, delta, context(dtype))[1].any()


@pytest.mark.parametrize("fields", NAMED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("value", [3e-30, -2.0, 1e30])
def test_constants_and_huge_values(
    fields: dict[str, Any], dtype: torch.dtype, value: float
) -> None:
    """Nothing overflows on the way, and a constant delta stays near that constant."""
    delta = torch.full((12, 40), value)
    codec = make_codec(fields).fit([delta])
    decoded = round_trip(codec, delta, context(dtype))[1]
    assert bool(torch.isfinite(decoded).all())
    if not isinstance(codec, Sparse):
        assert torch.allclose(decoded, delta, rtol=0.02, atol=0)
    elif codec.method == "magnitude":
        assert torch.allclose(decoded[decoded != 0], torch.tensor(value), rtol=0.01, atol=0)


# sparse


@pytest.mark.parametrize("drop", [0.0, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(13, 29), (40, 50)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_drop_is_equation_4(drop: float, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """F(Δ) = (1 − M) ⊙ Δ / (1 − p), with M from the regenerated positions."""
    delta = gauss(shape)
    size = delta.numel()
    codec = Sparse(drop_rate=drop)
    _, decoded = round_trip(codec, delta, context(dtype, seed=17))
    dropped = round(drop * size)
    mask = np.ones(size)
    mask[random_positions(size, size - dropped, 17).numpy()] = 0
    assert mask.sum() == dropped
    stored = double(delta.to(dtype))
    expected = (1 - mask.reshape(shape)) * stored / (1 - dropped / size)
    np.testing.assert_allclose(double(decoded), expected, rtol=2e-7)


def test_random_drop_is_unbiased() -> None:
    delta = gauss((20, 30), scale=1.0)
    seeds = 1200
    codec = Sparse(drop_rate=0.75)
    total = np.zeros((20, 30))
    for seed in range(seeds):
        how = context(seed=seed)
        total += double(codec.decode(codec.encode(delta, how), (20, 30), how))
    # Each entry's estimator has the variance Δ²·p/(1 − p) = 3Δ².
    deviation = (total / seeds - double(delta)) / (np.abs(double(delta)) * (3 / seeds) ** 0.5)
    assert np.abs(deviation).max() < 5
    assert 0.9 < deviation.std() < 1.1


def test_random_drop_of_everything_is_zero() -> None:
    codec = Sparse(drop_rate=0.999)
    parts, decoded = round_trip(codec, gauss((5, 5)), context())
    assert parts["values"].numel() == 0
    assert not decoded.any()


def test_random_drop_depends_on_the_seed() -> None:
    codec, delta = Sparse(drop_rate=0.5), gauss((30, 30))
    one = round_trip(codec, delta, context(seed=1))[1] != 0
    two = round_trip(codec, delta, context(seed=2))[1] != 0
    assert 0.4 < float((one & two).sum() / one.sum()) < 0.6


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coarse", [False, True])
def test_magnitude_keeps_the_largest(drop: float, dtype: torch.dtype, coarse: bool) -> None:
    delta = gauss((31, 45), scale=1.0)
    delta = (delta * 3).round() / 3 if coarse else delta  # with many ties
    _, decoded = round_trip(Sparse(drop_rate=drop, method="magnitude"), delta, context(dtype))
    flat = double(delta).ravel()
    kept = np.argsort(-np.abs(flat), kind="stable")[: flat.size - round(drop * flat.size)]
    expected = np.zeros_like(flat)
    expected[kept] = double(delta.to(dtype)).ravel()[kept]
    np.testing.assert_array_equal(double(decoded).ravel(), expected)


def test_magnitude_is_closer_than_random_drop() -> None:
    delta = gauss((64, 64))
    errors = [
        float(
            (round_trip(Sparse(drop_rate=0.8, method=method), delta, context())[1] - delta).norm()
        )
        for method in ("magnitude", "random")
    ]
    assert errors[0] < 0.5 * errors[1]


# quantized


def quantized_reference(delta: torch.Tensor, bits: int, group_size: int) -> tuple[Any, Any]:
    """By brute force in float64: per group, (error of the best shrunken range, largest |Δ|)."""
    values = double(delta)
    size = group_size or values.shape[1]
    levels = np.arange(2**bits) - (2**bits - 1) / 2
    errors, peaks = [], []
    for row in values:
        for begin in range(0, len(row), size):
            group = row[begin : begin + size]
            peak = np.abs(group).max()
            candidates = [peak * share / levels[-1] for share in (1, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)]
            errors.append(
                min(((group[:, None] - s * levels) ** 2).min(1).sum() for s in candidates)
            )
            peaks.append(peak)
    return np.array(errors), np.array(peaks)


def group_errors(delta: torch.Tensor, decoded: torch.Tensor, group_size: int) -> Any:
    size = group_size or delta.shape[1]
    squares = (double(delta) - double(decoded)) ** 2
    return np.array(
        [row[begin : begin + size].sum() for row in squares for begin in range(0, len(row), size)]
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [0, 7, 32, 128])
def test_scales_are_at_least_as_good_as_every_shrunken_range(bits: int, group_size: int) -> None:
    delta = gauss((9, 75), seed=bits)
    codec = Quantized(bits=bits, group_size=group_size)
    _, decoded = round_trip(codec, delta, context())
    best, _ = quantized_reference(delta, bits, min(group_size, 75))
    assert (group_errors(delta, decoded, min(group_size, 75)) <= best * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_are_the_nearest_levels_of_the_stored_scale(bits: int, dtype: torch.dtype) -> None:
    """No other choice of codes, entry by entry, comes closer."""
    delta, size = gauss((6, 50), seed=bits), 16
    parts, decoded = round_trip(Quantized(bits=bits, group_size=size), delta, context(dtype))
    levels = np.arange(2**bits) - (2**bits - 1) / 2
    scales = np.repeat(double(parts["scales"]), size, axis=1)[:, :50]
    choices = scales[..., None] * levels  # [out, in, levels]
    nearest = np.abs(choices - double(delta)[..., None]).min(-1)
    got = np.abs(double(decoded) - double(delta))
    np.testing.assert_allclose(got, nearest, rtol=1e-4, atol=2e-8)
    np.testing.assert_array_less(np.abs(choices - double(decoded)[..., None]).min(-1), 1e-8)


@pytest.mark.parametrize("group_size", [0, 1, 7, 64])
def test_one_bit_is_the_sign_times_the_mean(group_size: int) -> None:
    """BitDelta (arXiv 2402.10193), per group; the last group of a row may be short."""
    delta = gauss((11, 53))
    _, decoded = round_trip(Quantized(bits=1, group_size=group_size), delta, context())
    values, size = double(delta), group_size or 53
    expected = np.empty_like(values)
    for begin in range(0, 53, size):
        part = values[:, begin : begin + size]
        expected[:, begin : begin + size] = np.sign(part) * np.abs(part).mean(1, keepdims=True)
    np.testing.assert_allclose(double(decoded), expected, rtol=1e-6)


def relative(codec: DeltaCodec, delta: torch.Tensor, dtype: torch.dtype) -> float:
    decoded = round_trip(codec, delta, context(dtype))[1]
    return float(np.linalg.norm(double(decoded - delta)) / np.linalg.norm(double(delta)))


def test_error_falls_with_bits_and_is_that_of_a_gaussian() -> None:
    """The best uniform quantizers of a Gaussian leave 0.603, 0.345, 0.194, 0.107 (Max 1960, table
    II: roots of 0.3634, 0.1188, 0.03744, 0.01154). A scale fitted to each 128 entries, stored in
    bfloat16, comes near; at 4 bits it gains a little, because it knows its group's extremes.
    """
    delta = gauss((32, 512))
    errors = [relative(Quantized(bits=bits), delta, torch.bfloat16) for bits in range(1, 9)]
    assert all(more > 1.5 * less for more, less in pairwise(errors))
    for error, ideal in zip(errors, (0.6028, 0.3447, 0.1935, 0.1074), strict=False):
        assert 0.9 * ideal < error < 1.06 * ideal
    assert errors[7] < 0.011


def test_outliers_do_not_ruin_a_group() -> None:
    delta = gauss((1, 128))
    delta[0, 5] = 20 * delta.abs().max()
    clean = torch.ones(128, dtype=torch.bool)
    clean[5] = False
    decoded = round_trip(Quantized(bits=8), delta, context())[1]
    assert float((decoded - delta)[0, clean].abs().max()) < float(delta.abs().max()) / 255


def test_chunked_rows_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    delta, codec = gauss((40, 70)), Quantized(bits=3, group_size=32)
    parts, decoded = round_trip(codec, delta, context())
    monkeypatch.setattr("ders_core.codecs.quantized.CHUNK", 210)  # three rows at a time
    again, decoded_again = round_trip(codec, delta, context())
    assert all(torch.equal(again[name], parts[name]) for name in parts)
    assert torch.equal(decoded_again, decoded)


# lowrank


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1, 9), (33, 33)], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 30, 100])
def test_lowrank_error_is_eckart_young(shape: tuple[int, int], rank: int) -> None:
    delta = gauss(shape)
    parts, decoded = round_trip(LowRank(rank=rank), delta, context())
    singular = np.linalg.svd(double(delta), compute_uv=False)
    expected = math.sqrt((singular[rank:] ** 2).sum())
    got = np.linalg.norm(double(decoded) - double(delta))
    assert abs(got - expected) < 1e-5 * np.linalg.norm(double(delta))
    assert parts["left"].shape[1] == min(rank, *shape)


def test_randomized_svd_is_near_the_best() -> None:
    """Above 512 the randomized form is taken; on a falling spectrum it loses next to nothing."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(600, 600, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(700, 600, generator=generator))[0]
    spectrum = 0.97 ** torch.arange(600)
    delta = (left * spectrum) @ right.T
    decoded = round_trip(LowRank(rank=16), delta, context())[1]
    best = float(spectrum[16:].double().norm())
    assert float((decoded - delta).double().norm()) < 1.001 * best


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_energy_gives_the_smallest_rank_that_suffices(energy: float) -> None:
    deltas = [gauss((20, 30), seed) * (1 + seed) for seed in range(3)]
    codec = LowRank(energy=energy).fit(deltas)
    assert isinstance(codec, LowRank)
    assert codec.energy is None
    pooled = sum(np.linalg.svd(double(delta), compute_uv=False) ** 2 for delta in deltas)
    assert isinstance(pooled, np.ndarray)
    share = np.cumsum(pooled) / pooled.sum()
    assert codec.rank == int(np.argmax(share >= energy - 1e-9)) + 1


def test_energy_of_low_rank_deltas() -> None:
    deltas = [gauss((30, 3), 1) @ gauss((3, 50), 2), gauss((30, 2), 3) @ gauss((2, 50), 4)]
    codec = LowRank(energy=0.999999).fit(iter(deltas))
    assert isinstance(codec, LowRank)
    assert codec.rank == 3
    assert relative(codec, deltas[0], torch.float32) < 1e-5


# parameters


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codec": "zip"}, ["unknown codec 'zip'", "keep, lowrank, quantized, sparse"]),
        ({}, ["unknown codec None"]),
        ({"codec": ["sparse"]}, ["unknown codec"]),
        ({"codec": "sparse"}, ["'sparse'", "drop_rate"]),
        ({"codec": "sparse", "drop_rate": 1.0}, ["drop_rate", "less than 1", "1.0"]),
        ({"codec": "sparse", "drop_rate": -0.1}, ["drop_rate", "-0.1"]),
        ({"codec": "sparse", "drop_rate": float("nan")}, ["drop_rate", "nan"]),
        ({"codec": "sparse", "drop_rate": 0.5, "method": "best"}, ["method", "'best'"]),
        ({"codec": "sparse", "drop_rate": 0.5, "p": 1}, ["no parameter 'p'", "drop_rate, method"]),
        ({"codec": "quantized", "bits": 0}, ["bits", "0"]),
        ({"codec": "quantized", "bits": 9}, ["bits", "9"]),
        ({"codec": "quantized", "bits": 2, "group_size": -1}, ["group_size", "-1"]),
        ({"codec": "lowrank"}, ["either a rank or an energy"]),
        ({"codec": "lowrank", "rank": 2, "energy": 0.5}, ["either a rank or an energy"]),
        ({"codec": "lowrank", "rank": 0}, ["rank", "0"]),
        ({"codec": "lowrank", "energy": 1.5}, ["energy", "1.5"]),
        ({"codec": "keep", "bits": 2}, ["'keep' has no parameter 'bits'", "none"]),
        ({"codec": "keep", 3: 2}, ["'keep'", "3"]),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_wrong_parameters_are_one_sentence(fields: dict[Any, Any], words: list[str]) -> None:
    with pytest.raises(CodecError) as caught:
        make_codec(fields)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_the_registry_describes_every_codec() -> None:
    assert set(CODECS) == {"keep", "lowrank", "quantized", "sparse"}
    for name, cls in CODECS.items():
        assert codec_class(name) is cls
        assert cls.name == name
        assert cls.summary.endswith(".")
        assert cls.source
    labels = [make_codec(fields).label for fields in STRENGTHS]
    assert len(set(labels)) == len(labels)
    assert isinstance(make_codec({"codec": "keep"}), Keep)


@pytest.mark.gpu
@pytest.mark.parametrize("fields", NAMED)
def test_cuda_decodes_the_same(fields: dict[str, Any]) -> None:
    """Parts encoded on one device decode to the same delta on the other."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    delta = gauss((200, 300))
    codec = make_codec(fields).fit([delta])
    parts = codec.encode(delta, context(torch.bfloat16))
    here = codec.decode(parts, (200, 300), context(torch.bfloat16))
    there = codec.decode(
        {name: part.cuda() for name, part in parts.items()}, (200, 300), context(torch.bfloat16)
    )
    assert torch.allclose(there.cpu(), here, rtol=1e-5, atol=1e-7)
    on_gpu = codec.encode(delta.cuda(), context(torch.bfloat16))
    if isinstance(codec, Sparse):
        assert all(torch.equal(on_gpu[name].cpu(), parts[name]) for name in parts)
