"""Codecs together: constants and huge values, one-sentence refusals, dumps, CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.codec_support import (
    NAMED,
    STRENGTHS,
    context,
    fitted,
    gauss,
    round_trip,
)
from support.messages import raises_saying

from ders_core.codecs import (
    CODECS,
    Chain,
    Keep,
    LowRank,
    Quantized,
    Sparse,
    codec_class,
    make_codec,
)
from ders_core.errors import CodecError


def holds_a_constant(codec: Any) -> bool:
    """Whether the codec, with this strength, can represent a constant of 40 columns."""
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
    codec = fitted(fields, delta)
    decoded = round_trip(codec, delta, context(dtype))[1]
    assert bool(torch.isfinite(decoded).all())
    if holds_a_constant(codec):
        assert torch.allclose(decoded, delta, rtol=0.02, atol=0)
    elif isinstance(codec, Sparse) and codec.method == "magnitude":
        assert torch.allclose(decoded[decoded != 0], torch.tensor(value), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        (
            {"codec": "zip"},
            ["unknown codec 'zip'", ", ".join(sorted(CODECS))],
        ),
        ({}, ["unknown codec None"]),
        ({"codec": ["sparse"]}, ["unknown codec"]),
        ({"codec": "sparse"}, ["'sparse'", "drop_rate", "or a pattern"]),
        ({"codec": "sparse", "drop_rate": 0.5, "pattern": "2:4"}, ["'sparse'", "not both"]),
        ({"codec": "sparse", "drop_rate": 1.0}, ["drop_rate", "less than 1", "1.0"]),
        ({"codec": "sparse", "drop_rate": -0.1}, ["drop_rate", "-0.1"]),
        ({"codec": "sparse", "drop_rate": float("nan")}, ["drop_rate", "nan"]),
        ({"codec": "sparse", "drop_rate": 0.5, "method": "best"}, ["method", "'best'"]),
        ({"codec": "sparse", "drop_rate": 0.5, "p": 1}, ["no parameter 'p'", "drop_rate, pattern"]),
        ({"codec": "sparse", "pattern": "4:2"}, ["pattern", "'4:2'"]),
        ({"codec": "sparse", "pattern": "2:17"}, ["pattern", "at most 16"]),
        ({"codec": "sparse", "pattern": "two"}, ["pattern", "such as 2:4"]),
        ({"codec": "sparse", "pattern": "2:4", "method": "della"}, ["pattern", "magnitude"]),
        ({"codec": "sparse", "drop_rate": 0.5, "budget": "row"}, ["budget row", "magnitude"]),
        (
            {"codec": "sparse", "drop_rate": 0.5, "rescale": "none", "gain": "unbiased"},
            ["rescale", "gain", "not both"],
        ),
        ({"codec": "sparse", "drop_rate": 0.5, "value_bits": 3}, ["value_bits", "3"]),
        ({"codec": "quantized", "bits": 0}, ["bits", "0"]),
        ({"codec": "quantized", "bits": 9}, ["bits", "9"]),
        ({"codec": "quantized"}, ["give bits"]),
        ({"codec": "quantized", "bits": 2, "grid": "ternary"}, ["ternary"]),
        ({"codec": "quantized", "bits": 2, "grid": "log"}, ["grid", "'log'"]),
        ({"codec": "quantized", "bits": 2, "group_size": -1}, ["group_size", "-1"]),
        ({"codec": "quantized", "bits": 2, "scale_bits": 4}, ["scale_bits", "4"]),
        ({"codec": "lowrank"}, ["one of", "rank", "energy", "bits"]),
        ({"codec": "lowrank", "rank": 2, "energy": 0.5}, ["only one"]),
        ({"codec": "lowrank", "rank": 0}, ["rank", "0"]),
        ({"codec": "lowrank", "rank": 2, "leading": 1}, ["factor_bits"]),
        ({"codec": "lowrank", "energy": 1.5}, ["energy", "1.5"]),
        ({"codec": "entropy"}, ["'entropy'", "bits", "knob"]),
        ({"codec": "entropy", "knob": 1e-3}, ["knob", "steps: sensitive"]),
        ({"codec": "quantized", "bits": 1, "gain": 1.5}, ["gain", "1.5"]),
        ({"codec": "quantized", "bits": 1, "gain": "best"}, ["gain", "auto", "'best'"]),
        ({"codec": "entropy", "bits": 9}, ["bits", "9"]),
        ({"codec": "keep", "bits": 2}, ["'keep'", "no parameter 'bits'", "none"]),
        ({"codec": "keep", 3: 2}, ["'keep'", "3"]),
        ({"codec": "lossless", "level": 2}, ["'lossless'", "no parameter 'level'"]),
        ({"codec": "chain", "stages": 3}, ["'chain'", "stages", "list"]),
        ({"codec": "chain", "stages": [{"codec": "lowrank", "rank": 1}]}, ["stages", "2"]),
        (
            {"codec": "chain", "stages": [{"codec": "lowrank", "rank": 1}, {"codec": "keep"}]},
            ["stage 2", "'keep'", "chain"],
        ),
        (
            {"codec": "chain", "stages": [{"codec": "quantized", "bits": 9}, {"codec": "zip"}]},
            ["stage 1", "'quantized'", "bits", "equal to 8", "9"],
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_wrong_parameters_are_one_sentence(fields: dict[Any, Any], facts: list[str]) -> None:
    with raises_saying(CodecError, *facts):
        make_codec(fields)


def test_the_registry_holds_every_codec_of_the_package() -> None:
    known = {"chain", "entropy", "keep", "lossless", "lowrank", "quantized", "sparse"}
    assert set(CODECS) == known
    for name, cls in CODECS.items():
        assert codec_class(name) is cls
        assert cls.name == name
    labels = [make_codec(fields).label for fields in STRENGTHS]
    assert len(set(labels)) == len(labels)
    assert isinstance(make_codec({"codec": "keep"}), Keep)


def test_dumps_tell_no_more_than_a_person_would_write() -> None:
    for fields in [{"codec": "keep"}, {"codec": "lossless"}, *STRENGTHS]:
        dump = make_codec(fields).dump()
        assert fields.items() <= dump.items()
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
    codec = fitted(fields, delta)
    parts = codec.encode(delta, context(torch.bfloat16))
    here = codec.decode(parts, (200, 300), context(torch.bfloat16))
    there = codec.decode(
        {name: part.cuda() for name, part in parts.items()}, (200, 300), context(torch.bfloat16)
    )
    assert torch.allclose(there.cpu(), here, rtol=1e-5, atol=1e-7)
    if codec.is_coded_on_cpu:
        return
    on_gpu = codec.encode(delta.cuda(), context(torch.bfloat16))
    if isinstance(codec, Sparse) and codec.value_bits is None and codec.rescale is None:
        assert all(torch.equal(on_gpu[name].cpu(), parts[name]) for name in parts)
    if codec.is_encoded_together:  # directions may have other signs
        again = codec.decode(on_gpu, (200, 300), context(torch.bfloat16)).cpu()
        assert torch.dist(again, delta) == pytest.approx(torch.dist(here, delta), rel=2e-3)
