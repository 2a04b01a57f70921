"""What holds for every codec: promised parts, determinism, odd inputs, one-sentence refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from codec_support import (
    DTYPES,
    NAMED,
    SHAPES,
    STRENGTHS,
    check_promise,
    context,
    gauss,
    inputs,
    round_trip,
    second_moments,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs import (
    CODECS,
    Chain,
    Keep,
    Lossless,
    LowRank,
    Quantized,
    Sparse,
    codec_class,
    make_codec,
)
from ders_core.errors import CodecError


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
@settings(max_examples=15, deadline=None)
@given(
    out=st.integers(1, 24),
    width=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
    diagonal=st.booleans(),
)
def test_with_a_calibration_parts_are_the_same_size_and_decode_without_it(
    fields: dict[str, Any], out: int, width: int, dtype: torch.dtype, seed: int, diagonal: bool
) -> None:
    delta = gauss((out, width), seed)
    moments = second_moments(inputs(width, tokens=1 + seed % 60))  # often of less than full rank
    moments = moments.diagonal() if diagonal else moments
    codec = make_codec(fields).fit([delta])
    decoded = round_trip(codec, delta, context(dtype, seed, moments))[1]
    assert bool(torch.isfinite(decoded).all())
    dead = round_trip(codec, delta, context(dtype, seed, torch.zeros_like(moments)))[1]
    assert bool(torch.isfinite(dead).all())


@pytest.mark.parametrize("fields", NAMED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_stay_zeros(
    fields: dict[str, Any], dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    delta = torch.zeros(shape)
    codec = make_codec(fields).fit([delta, delta])
    assert not round_trip(codec, delta, context(dtype))[1].any()


def holds_a_constant(codec: Any) -> bool:
    """Whether the form, strong as it is here, can tell a constant of 40 columns."""
    if isinstance(codec, Chain):
        return all(holds_a_constant(stage) for stage in codec.stages)
    if isinstance(codec, LowRank):  # 2 bits of float32 are no whole direction here
        return codec.bits is None
    return not isinstance(codec, Sparse)


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
    if holds_a_constant(codec):
        assert torch.allclose(decoded, delta, rtol=0.02, atol=0)
    elif isinstance(codec, Sparse) and codec.method == "magnitude":
        assert torch.allclose(decoded[decoded != 0], torch.tensor(value), rtol=0.01, atol=0)


@pytest.mark.parametrize("fields", [*NAMED, pytest.param({"codec": "lossless"}, id="lossless")])
def test_packing_is_base_plus_delta(fields: dict[str, Any]) -> None:
    """`unpack` gives W_base + F(W − W_base), summed in float32 and rounded once."""
    weight, base = gauss((9, 21), 1, 1.0).bfloat16(), gauss((9, 21), 2, 1.0).bfloat16()
    delta = weight.float() - base.float()
    codec, how = make_codec(fields).fit([delta]), context(torch.bfloat16)
    parts = codec.pack(weight, base, how)
    check_promise(codec, parts, (9, 21), torch.bfloat16)
    found = codec.unpack(parts, base, how)
    assert found.dtype is torch.bfloat16
    if isinstance(codec, Lossless):
        assert torch.equal(found, weight)
    else:
        assert torch.equal(found, (codec.decode(parts, (9, 21), how) + base.float()).bfloat16())


THREADS = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[2])
from codec_support import STRENGTHS, context, gauss, inputs, second_moments
from ders_core.codecs import make_codec
from ders_core.compute.threads import one_thread

torch.set_num_threads(int(sys.argv[1]))
with one_thread():
    delta, moments = gauss((150, 300)), second_moments(inputs(300))
    for fields in [*STRENGTHS, {"codec": "lossless"}]:
        codec = make_codec(fields).fit([delta])
        digest = hashlib.sha256()
        for how in (context(torch.bfloat16), context(torch.bfloat16, 5, moments)):
            parts = codec.pack(delta.bfloat16(), torch.zeros_like(delta).bfloat16(), how)
            for name in sorted(parts):
                digest.update(parts[name].flatten().view(torch.uint8).numpy().tobytes())
        print(codec.label, digest.hexdigest())
"""


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    """As groups are encoded: in processes that were given 1 and 2 threads."""
    here = str(Path(__file__).parent)
    said = [
        subprocess.run(
            [sys.executable, "-c", THREADS, threads, here],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for threads in ("1", "2")
    ]
    assert len(said[0]) == len(STRENGTHS) + 1
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"codec": "zip"},
            ["unknown codec 'zip'", "chain, entropy, keep, lossless, lowrank, quantized, sparse"],
        ),
        ({}, ["unknown codec None"]),
        ({"codec": ["sparse"]}, ["unknown codec"]),
        ({"codec": "sparse"}, ["'sparse'", "drop_rate or a pattern"]),
        ({"codec": "sparse", "drop_rate": 0.5, "pattern": "2:4"}, ["'sparse'", "not both"]),
        ({"codec": "sparse", "drop_rate": 1.0}, ["drop_rate", "less than 1", "1.0"]),
        ({"codec": "sparse", "drop_rate": -0.1}, ["drop_rate", "-0.1"]),
        ({"codec": "sparse", "drop_rate": float("nan")}, ["drop_rate", "nan"]),
        ({"codec": "sparse", "drop_rate": 0.5, "method": "best"}, ["method", "'best'"]),
        ({"codec": "sparse", "drop_rate": 0.5, "p": 1}, ["no parameter 'p'", "drop_rate, pattern"]),
        ({"codec": "sparse", "pattern": "4:2"}, ["pattern", "'4:2'"]),
        ({"codec": "sparse", "pattern": "2:17"}, ["pattern", "at most 16"]),
        ({"codec": "sparse", "pattern": "two"}, ["pattern", "such as 2:4"]),
        ({"codec": "sparse", "pattern": "2:4", "method": "della"}, ["its method is magnitude"]),
        ({"codec": "sparse", "drop_rate": 0.5, "budget": "row"}, ["budget row", "magnitude"]),
        (
            {"codec": "sparse", "drop_rate": 0.5, "method": "magnitude", "rescale": "unbiased"},
            ["unbiased is for random draws"],
        ),
        ({"codec": "sparse", "drop_rate": 0.5, "value_bits": 3}, ["value_bits", "3"]),
        ({"codec": "quantized", "bits": 0}, ["bits", "0"]),
        ({"codec": "quantized", "bits": 9}, ["bits", "9"]),
        ({"codec": "quantized"}, ["give bits"]),
        ({"codec": "quantized", "bits": 2, "grid": "ternary"}, ["ternary"]),
        ({"codec": "quantized", "bits": 2, "grid": "log"}, ["grid", "'log'"]),
        ({"codec": "quantized", "bits": 2, "group_size": -1}, ["group_size", "-1"]),
        ({"codec": "quantized", "bits": 2, "scale_bits": 4}, ["scale_bits", "4"]),
        ({"codec": "lowrank"}, ["one of rank, energy and bits"]),
        ({"codec": "lowrank", "rank": 2, "energy": 0.5}, ["only one"]),
        ({"codec": "lowrank", "rank": 0}, ["rank", "0"]),
        ({"codec": "lowrank", "rank": 2, "leading": 1}, ["factor_bits"]),
        ({"codec": "lowrank", "energy": 1.5}, ["energy", "1.5"]),
        ({"codec": "entropy"}, ["'entropy' needs the parameter 'bits'"]),
        ({"codec": "entropy", "bits": 9}, ["bits", "9"]),
        ({"codec": "keep", "bits": 2}, ["'keep' has no parameter 'bits'", "none"]),
        ({"codec": "keep", 3: 2}, ["'keep'", "3"]),
        ({"codec": "lossless", "level": 2}, ["'lossless' has no parameter 'level'"]),
        ({"codec": "chain", "stages": 3}, ["'chain'", "stages is a list"]),
        ({"codec": "chain", "stages": [{"codec": "lowrank", "rank": 1}]}, ["stages", "2"]),
        (
            {"codec": "chain", "stages": [{"codec": "lowrank", "rank": 1}, {"codec": "keep"}]},
            ["stage 2", "'keep' cannot stand in a chain"],
        ),
        (
            {"codec": "chain", "stages": [{"codec": "quantized", "bits": 9}, {"codec": "zip"}]},
            ["stage 1", "'quantized'", "less than or equal to 8"],
        ),
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
    known = {"chain", "entropy", "keep", "lossless", "lowrank", "quantized", "sparse"}
    assert set(CODECS) == known
    for name, cls in CODECS.items():
        assert codec_class(name) is cls
        assert cls.name == name
        assert cls.summary.endswith(".")
        assert cls.source
    labels = [make_codec(fields).label for fields in STRENGTHS]
    assert len(set(labels)) == len(labels)
    assert isinstance(make_codec({"codec": "keep"}), Keep)


def test_dumps_tell_no_more_than_a_person_would_write() -> None:
    for fields in [{"codec": "keep"}, {"codec": "lossless"}, *STRENGTHS]:
        told = make_codec(fields).dump()
        assert fields.items() <= told.items()
    assert Quantized(bits=4).dump() == {"codec": "quantized", "bits": 4, "group_size": 128}
    assert LowRank(rank=4).dump() == {"codec": "lowrank", "rank": 4}
    drop = {"codec": "sparse", "drop_rate": 0.9, "method": "random"}
    assert Sparse(drop_rate=0.9).dump() == drop


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
    if isinstance(codec, Sparse) and codec.value_bits is None and codec.rescale is None:
        assert all(torch.equal(on_gpu[name].cpu(), parts[name]) for name in parts)
