"""Deltas of `entropy` that are held in memory by their levels are the same deltas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import gauss

from ders_core.codecs import Chain, EncodeContext, Entropy, LowRank, part_begins
from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.small_codes import pack_small, small_bytes, unpack_small, width_of
from ders_core.codecs.held_levels import DENSE, FORM, HELD, SPARSE, STREAM, Form, HeldLevels
from ders_core.codecs.part_begins import FIRST_BYTES, GROWTH, PartBegins
from ders_core.codecs.routed import CodedExperts, Routes
from ders_core.codecs.testing.inputs import curvature
from ders_core.compute import kernels
from ders_core.errors import CodecError
from ders_core.files.dtype import Dtype
from ders_core.packed.reader import PackedCheckpoint

LARGE = (300, 700)
"""With this shape the forms are those that are named here."""

UNBIASED: dict[str, Any] = {"rounding": "unbiased", "gain": "auto"}
FORMS: list[tuple[dict[str, Any], int]] = [
    ({"bits": 0.2, **UNBIASED}, SPARSE),
    ({"bits": 0.4}, SPARSE),  # the common level is not 0
    ({"bits": 0.3, "steps": "sensitive", **UNBIASED}, SPARSE),
    ({"bits": 0.3, "steps": "sensitive"}, SPARSE),  # nor is it then
    ({"bits": 1.3, **UNBIASED}, DENSE),
    ({"bits": 2, "steps": "sensitive", **UNBIASED}, DENSE),
    ({"bits": 4}, DENSE),
    ({"bits": 7.9}, STREAM),
]
SHAPES = ((40, 64), (13, 500), LARGE)


def context_of(codec: Entropy, shape: tuple[int, int], dtype: torch.dtype) -> EncodeContext:
    known = curvature(shape) if codec.steps == "sensitive" else None
    return EncodeContext(dtype, 7, None, known)


@pytest.mark.parametrize(
    ("fields", "kind", "has_loops"),
    [
        (*form, has_loops)
        for form in FORMS
        for has_loops in (True, False)
        if has_loops or form[1] != STREAM  # which its codec reads
    ],
    ids=str,
)
def test_deltas_and_weights_are_the_codecs_own(
    fields: dict[str, Any], kind: int, has_loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, from compiled loops and from torch; and products are those of the deltas."""
    codec = Entropy(**fields)
    for shape in SHAPES:
        context = context_of(codec, shape, torch.bfloat16)
        held = codec.held_form(shape)
        parts = codec.encode(gauss(shape, 1), context)
        delta = codec.decode(parts, shape, context)
        own = codec.held_parts(parts, shape, context)
        assert Form.read(own).kind == kind or shape != LARGE
        assert own[HELD].numel() <= held.parts(shape, Dtype.BF16)[HELD].nbytes
        dtypes = (torch.bfloat16, torch.float16, torch.float32)
        bases = [gauss(shape, 2).to(dtype) for dtype in dtypes]
        weights = [codec.unpack(parts, base, context) for base in bases]
        with monkeypatch.context() as patch:
            if not has_loops:
                patch.setattr(kernels, "_installed", lambda: False)
            assert torch.equal(held.decode(own, shape, context), delta)
            for base, weight in zip(bases, weights, strict=True):
                assert torch.equal(held.unpack(own, base, context), weight)
            for count in (1, 3, 12, 40):
                x = gauss((count, shape[1]), 4)
                product = held.product(own, x, shape, context)
                expected = x.double() @ delta.double().T
                error = float((product - expected).abs().max())
                assert error <= 2e-6 * float(expected.abs().max())


@settings(max_examples=12)
@given(
    bits=st.sampled_from([0.1, 0.3, 0.7, 1.2, 2.5]),
    rounding=st.sampled_from(["nearest", "unbiased"]),
    steps=st.sampled_from(["even", "sensitive"]),
    shape=st.tuples(st.integers(1, 24), st.integers(1, 140)),
    chosen=st.lists(
        st.tuples(st.integers(0, 2), st.integers(-1, 1), st.integers(0, 1)), max_size=9
    ),
)
def test_sums_of_pairs_are_those_of_decoded_deltas(
    bits: float,
    rounding: str,
    steps: str,
    shape: tuple[int, int],
    chosen: list[tuple[int, int, int]],
) -> None:
    """In float64, pair by pair."""
    codec = Entropy.model_validate({"bits": bits, "rounding": rounding, "steps": steps})
    context = context_of(codec, shape, torch.float32)
    coded = [codec.encode(gauss(shape, seed), context) for seed in (1, 2)]
    matrices = [codec.decode(parts, shape, context).double().numpy() for parts in coded]
    held = [codec.held_parts(parts, shape, context) for parts in coded]
    forms = {FORM: torch.stack([each[FORM] for each in held])}
    experts = CodedExperts(forms, shape, [context] * 2, {HELD: [each[HELD] for each in held]})
    routed = HeldLevels(of_streams=codec).routed(experts)
    assert routed is not None
    x, y = gauss((3, shape[1]), 5).numpy(), gauss((2, shape[0] + 3), 6).numpy()
    columns = np.array(chosen, np.int64).reshape(-1, 3).T
    routes = Routes(*(np.ascontiguousarray(column) for column in columns))
    expected = y.astype(np.float64)
    for token, expert, place in chosen:
        if expert >= 0:
            expected[place, 2 : 2 + shape[0]] += matrices[expert] @ x[token].astype(np.float64)
    routed.add(x, y, 2, routes)
    scale = np.abs(expected).max() + max(np.abs(matrix).max() for matrix in matrices)
    assert np.abs(y - expected).max() <= 3e-6 * scale * shape[1] ** 0.5


def counted_begins(parts: Mapping[str, torch.Tensor]) -> tuple[PartBegins, list[int]]:
    """How parts begin, and how many bytes each read took."""
    taken: list[int] = []

    def read(part: str, count: int) -> np.ndarray:
        taken.append(count)
        return parts[part][:count].numpy()

    return PartBegins({name: len(part) for name, part in parts.items()}, read), taken


def begins_of(parts: Mapping[str, torch.Tensor]) -> PartBegins:
    return counted_begins(parts)[0]


@pytest.mark.parametrize(("fields", "kind"), FORMS, ids=lambda each: str(each))
def test_lengths_are_told_from_where_streams_begin(fields: dict[str, Any], kind: int) -> None:
    """To a hundredth; and few bytes are read for it."""
    codec, shape = Entropy(**fields), LARGE
    context = context_of(codec, shape, torch.bfloat16)
    parts = codec.encode(gauss(shape, 1), context)
    own = codec.held_parts(parts, shape, context)
    assert Form.read(own).kind == kind
    held = own[HELD]
    begins, taken = counted_begins(parts)
    told = codec.held_lengths(begins, shape)[HELD]
    assert abs(told - len(held)) <= 0.01 * len(held)
    assert taken == [min(FIRST_BYTES, len(parts["stream"]))]


def test_more_is_read_where_the_first_bytes_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Entropy(bits=1, steps="sensitive")
    parts = codec.encode(gauss(LARGE, 1), context_of(codec, LARGE, torch.float32))
    wanted = codec.held_lengths(begins_of(parts), LARGE)
    begins, taken = counted_begins(parts)
    monkeypatch.setattr(part_begins, "FIRST_BYTES", 8)
    assert codec.held_lengths(begins, LARGE) == wanted
    assert taken == [8 * GROWTH**turn for turn in range(len(taken))]
    assert 1 < len(taken) < 5  # some kilobytes, of tens


def test_a_stream_that_is_cut_where_it_begins_is_refused() -> None:
    codec, shape = Entropy(bits=1, steps="sensitive"), (30, 70)
    parts = codec.encode(gauss(shape, 1), context_of(codec, shape, torch.float32))
    for length in (1, 5, 40):
        with pytest.raises(CodecError, match="damaged"):
            level_stream.about(parts["stream"][:length].numpy(), shape)
    cut = {"stream": parts["stream"][:40]}
    with pytest.raises(CodecError, match="damaged"):
        codec.held_lengths(begins_of(cut), shape)


def test_stages_of_a_chain_are_held_each_in_its_form() -> None:
    chain = Chain(stages=(LowRank(rank=2), Entropy(bits=0.5)))
    shape, context = (24, 64), EncodeContext(torch.float32, 5)
    held = chain.held_form(shape)
    assert isinstance(held, Chain)
    assert held.ragged == {f"1.{HELD}"}
    parts = chain.encode(gauss(shape, 1), context)
    own = chain.held_parts(parts, shape, context)
    assert own.keys() == held.parts(shape, Dtype.F32).keys()
    assert torch.equal(held.decode(own, shape, context), chain.decode(parts, shape, context))
    lengths = chain.held_lengths(begins_of(parts), shape)
    assert lengths.keys() == held.ragged


@given(bits=st.sampled_from([1, 2, 4, 8]), count=st.integers(0, 40), seed=st.integers(0, 9))
def test_small_codes_come_back(bits: int, count: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (count,), generator=random).to(torch.uint8)
    packed = pack_small(codes, bits)
    assert len(packed) == small_bytes(count, bits)
    assert torch.equal(unpack_small(packed, bits, count), codes)
    for place in range(count):
        begin = place * bits
        assert int(packed[begin // 8]) >> begin % 8 & (1 << bits) - 1 == int(codes[place])


def test_widths_of_small_codes() -> None:
    assert [width_of(count) for count in (1, 2, 3, 4, 5, 16, 17, 256)] == [1, 1, 2, 2, 4, 4, 8, 8]


def test_streams_of_earlier_versions_stay_as_they_are() -> None:
    """Of even steps and of sensitive ones, as files of format version 2 hold them."""
    packed = PackedCheckpoint(Path(__file__).parent.parent / "golden" / "v2-entropy")
    for group in packed.manifest.groups:
        codec, shape = group.group_codec().codec, group.shape[1:]
        assert isinstance(codec, Entropy)
        stream = packed.store.tensors[f"{group.prefix}.stream"].read(
            slice(0, group.lengths["stream"][0])
        )
        parts, context = {"stream": stream}, EncodeContext(torch.float32, 0)
        own = codec.held_parts(parts, shape, context)
        assert Form.read(own).kind == STREAM
        held = codec.held_form(shape)
        expected = codec.decode(parts, shape, context)
        assert torch.equal(held.decode(own, shape, context), expected)
        base = gauss(shape, 3)
        assert torch.equal(held.unpack(own, base, context), codec.unpack(parts, base, context))
        assert codec.held_lengths(begins_of(parts), shape)[HELD] == len(own[HELD])
        alone = CodedExperts({FORM: own[FORM][None]}, shape, [context], {HELD: [own[HELD]]})
        assert held.routed(alone) is None
