"""Checks of what a codec packs: parts as promised, each time the same, which give the weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ders_core.codecs.codec import Codec, DeltaCodec, EncodeContext, Parts
from ders_core.codecs.testing.inputs import (
    DTYPES,
    SHAPES,
    SHAPES_IN_EVERY_DTYPE,
    curvature,
    gaussian,
    second_moments,
)
from ders_core.codecs.testing.sameness import same_bits, same_parts
from ders_core.compute import pieces
from ders_core.errors import CodecError
from ders_core.files.dtype import Dtype

ROUNDING, TINY = 1e-4, 1e-30
"""Of a product in float32, relative to the sum of its terms' magnitudes; and beside that."""

DAMAGES = 24
"""Bytes of each coded part that are changed, one at a time."""


def check_promise(codec: Codec, parts: Parts, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The parts are those of `codec.parts`, name by name, in dtype and shape."""
    promised = codec.parts(shape, Dtype.of(dtype))
    assert parts.keys() == promised.keys()
    assert codec.ragged <= parts.keys()
    for name, tensor in parts.items():
        assert tensor.dtype == promised[name].dtype.torch, name
        if name in codec.ragged:
            assert len(tensor) <= promised[name].shape[0], name
            assert tensor.shape[1:] == promised[name].shape[1:], name
        else:
            assert tuple(tensor.shape) == promised[name].shape, name
    if codec.exact:
        assert not codec.ragged


def check_packing(
    codec: Codec, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext
) -> tuple[Parts, torch.Tensor]:
    """Pack twice (a codec of deltas: pack, and encode the delta) and unpack, without the moments:
    (parts, Ŵ).

    Inputs stay as they are, parts are as promised and the same each time, Ŵ has the dtype and shape
    of the base and is finite; a codec of deltas gives W_base + F(W − W_base), rounded once, to any
    dtype, and F of some rows; a lossless one gives W.
    """
    shape = (weight.shape[0], weight.shape[1])
    before = weight.clone(), base.clone()
    parts = codec.pack(weight, base, context)
    check_promise(codec, parts, shape, base.dtype)
    if not isinstance(codec, DeltaCodec):
        assert same_parts(codec.pack(weight, base, context), parts), "packing is not deterministic"
    saved = {name: part.clone() for name, part in parts.items()}
    plain = EncodeContext(context.dtype, context.seed)
    restored = codec.unpack(parts, base, plain)
    in_pieces = torch.cat([*codec.unpack_in_pieces(parts, base, plain)])
    assert same_bits(in_pieces.view(shape), restored), "pieces differ from the whole"
    assert same_parts(parts, saved), "unpacking changed the parts"
    assert same_bits(weight, before[0]), "the weight was changed"
    assert same_bits(base, before[1]), "the base was changed"
    assert restored.dtype is base.dtype
    assert restored.shape == base.shape
    assert bool(torch.isfinite(restored).all())
    if codec.lossless:
        assert same_bits(restored, weight), "a lossless codec lost bits"
    if isinstance(codec, DeltaCodec):
        delta = weight.float() - base.float()
        encoded, decoded = check_encoding(codec, delta, context)
        assert same_parts(encoded, parts), "packing is not deterministic, or differs from encode"
        total = decoded + base.float()
        assert same_bits(restored, total.to(base.dtype))
        assert same_bits(codec.unpack_as(torch.float32, parts, base, plain), total)
        for rows in (slice(None), slice(shape[0] // 3, 2 * shape[0] // 3)):
            again, some = codec.unpack_with_rows(rows, parts, base, plain)
            assert same_bits(torch.cat([*again]).view(shape), restored)
            assert same_bits(some, decoded[rows])
    return parts, restored


def check_together(codec: Codec) -> None:
    """Deltas that are encoded together have the parts that each has alone, by its own context."""
    if not isinstance(codec, DeltaCodec):
        return
    deltas = [gaussian((13, 29), seed, 0.05 * seed) for seed in (1, 2, 3)]
    contexts = [
        EncodeContext(torch.bfloat16, seed, second_moments(29, 40 + seed), curvature((13, 29)))
        for seed in (5, 6, 7)
    ]
    fitted = codec.fit(deltas)
    assert isinstance(fitted, DeltaCodec)
    before = [delta.clone() for delta in deltas]
    together = fitted.encode_each(deltas, contexts)
    assert len(together) == len(deltas)
    assert all(map(same_bits, deltas, before)), "encode_each changed its input"
    for parts, delta, context in zip(together, deltas, contexts, strict=True):
        assert same_parts(parts, fitted.encode(delta, context))
    assert not fitted.encode_each([], [])


def check_encoding(
    codec: DeltaCodec, delta: torch.Tensor, context: EncodeContext
) -> tuple[Parts, torch.Tensor]:
    """Encode a delta `[out, in]` and decode it, without the moments: (parts, Δ̂ float32). Products
    with it are those of what is decoded, up to the rounding of sums."""
    shape, before = (delta.shape[0], delta.shape[1]), delta.clone()
    parts = codec.encode(delta, context)
    assert same_bits(delta, before), "encode changed its input"
    check_promise(codec, parts, shape, context.dtype)
    plain = EncodeContext(context.dtype, context.seed)
    decoded = codec.decode(parts, shape, plain)
    assert decoded.dtype is torch.float32
    assert tuple(decoded.shape) == shape
    assert bool(torch.isfinite(decoded).all())
    x = gaussian((3, shape[1]), 7, 1.0)
    product = codec.product(parts, x, shape, plain)
    assert product.dtype is x.dtype
    error = (product.double() - x.double() @ decoded.double().T).abs()
    assert bool((error <= ROUNDING * (x.abs() @ decoded.abs().T) + TINY).all())
    return parts, decoded


def check_shapes(codec: Codec) -> None:
    """Any shape, some of them in any dtype, with and without a calibration; experts at their base
    stay there."""
    for shape in SHAPES:
        for dtype in DTYPES if shape in SHAPES_IN_EVERY_DTYPE else DTYPES[:1]:
            base = gaussian(shape, 1, 1.0).to(dtype)
            weight = (base.float() + gaussian(shape, 2)).to(dtype)
            delta = weight.float() - base.float()
            settled = codec.fit([delta, 0.5 * delta])
            assert settled.settled
            context = EncodeContext(dtype, 5)
            check_packing(settled, weight, base, context)
            still = codec.fit([0 * delta, 0 * delta])
            parts = still.pack(base, base, context)
            check_promise(still, parts, shape, dtype)
            assert torch.equal(still.unpack(parts, base, context), base)
    check_calibration(codec, (13, 29))


def check_calibration(codec: Codec, shape: tuple[int, int]) -> None:
    """Parts keep their sizes with second moments, full, diagonal or zero, and with curvature, also
    of zero, and decode without."""
    base = gaussian(shape, 1, 1.0)
    weight = base + gaussian(shape, 2)
    settled, moments = codec.fit([weight - base]), second_moments(shape[1])
    for known in (moments, moments.diagonal(), torch.zeros_like(moments)):
        check_packing(settled, weight, base, EncodeContext(torch.float32, 5, known))
    for size in (1e-2, 0.0):
        known_costs = curvature(shape, size)
        removal = float(known_costs.cost(weight - base))
        context = EncodeContext(torch.float32, 5, None, known_costs, removal)
        check_packing(settled, weight, base, context)


def check_pieces(codec: Codec) -> None:
    """Work in pieces of a few rows gives the same bytes, also where the base holds −0."""
    for dtype in (torch.bfloat16, torch.float32):
        base, weight = gaussian((24, 33)).to(dtype), gaussian((24, 33), 1).to(dtype)
        base[::3, ::2] = -0.0
        settled = codec.fit([weight.float() - base.float()])
        context = EncodeContext(dtype, 5)
        parts, restored = check_packing(settled, weight, base, context)
        with _pieces_of(70):
            packed, in_pieces = check_packing(settled, weight, base, context)
        assert same_parts(packed, parts)
        assert same_bits(in_pieces, restored)


@contextmanager
def _pieces_of(values: int) -> Iterator[None]:
    """Meanwhile, matrices are worked on in pieces of that many values."""
    before = pieces.CHUNK
    pieces.CHUNK = values
    try:
        yield
    finally:
        pieces.CHUNK = before


def check_damage(codec: Codec) -> None:
    """Coded parts that were changed or cut are refused in one sentence, or read as other values."""
    base = gaussian((20, 30), 3)
    weight = base + gaussian((20, 30))
    settled, context = codec.fit([weight - base]), EncodeContext(torch.float32, 5)
    parts = settled.pack(weight, base, context)
    for name, part in parts.items():
        if part.dtype != torch.uint8 or not part.numel():
            continue
        flat = part.view(-1)
        for place in range(0, flat.numel(), -(-flat.numel() // DAMAGES)):
            changed = flat.clone()
            changed[place] ^= 1 + place % 255
            spoilt = [changed.view(part.shape)]
            if name in settled.ragged:
                spoilt.append(part[:place])
            for damaged in spoilt:
                read_or_refuse(settled, {**parts, name: damaged}, base)


def read_or_refuse(codec: Codec, parts: Mapping[str, torch.Tensor], base: torch.Tensor) -> None:
    """Unpack damaged parts: a weight of the base's shape, finite for codecs of deltas; or a
    CodecError that says so."""
    try:
        restored = codec.unpack(parts, base, EncodeContext(base.dtype, 5))
    except CodecError as error:
        refusal = str(error)
    else:
        refusal = "damaged"
        assert restored.shape == base.shape
        assert not isinstance(codec, DeltaCodec) or bool(torch.isfinite(restored).all())
    assert "damaged" in refusal
