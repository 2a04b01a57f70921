"""Checks that every codec passes. Whoever writes a codec runs them on examples of it:

    @pytest.mark.parametrize("codec", examples_of(MyCodec), ids=lambda codec: codec.label)
    def test_my_codec(codec):
        check_codec(codec)

Each check raises AssertionError. They need no test runner and leave nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ders_core.codecs.codec import CODECS, Codec, DeltaCodec, EncodeContext, Parts, make_codec
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.tunable import TUNED_KINDS, Tunable
from ders_core.compute import pieces
from ders_core.errors import CodecError
from ders_core.files.dtype import Dtype

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = (
    *((0, 0), (0, 5), (5, 0), (1, 1), (1, 37), (37, 1)),
    *((13, 29), (29, 13), (16, 128), (8, 131), (130, 2)),
)
"""Empty, thin, even and odd ones."""

SHAPES_IN_EVERY_DTYPE = ((0, 5), (13, 29), (16, 128))

GAUSSIAN_SHAPE = (96, 1024)
LEAST_OF_EXPECTED, MOST_OF_EXPECTED = 0.2, 1.5
"""The error on Gaussian deltas as a multiple of the expected one. Small blocks may do far better
than expected; no codec does much worse. What a code of least squares lacks, 1 − a, is the error's
square."""

GAIN_TOLERANCE, CHANCE = 0.01, 5
"""By how much a gain may differ from the expected one: this, and so many standard deviations of
what is drawn by chance."""

DAMAGES = 24
"""Bytes of each coded part that are changed, one at a time."""


def examples_of(codec_class: type[Codec]) -> list[Codec]:
    """The codecs that a class names as its examples."""
    return [make_codec({"codec": codec_class.name, **fields}) for fields in codec_class.examples]


def gaussian(shape: tuple[int, ...], seed: int = 0, scale: float = 1e-2) -> torch.Tensor:
    """float32, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def second_moments(width: int, tokens: int = 50) -> torch.Tensor:
    """E[x xᵀ] `[in, in]` of inputs with loud and quiet columns; of less than full rank where there
    are fewer tokens than columns."""
    loudness = torch.exp(gaussian((width,), 1, 1.2))
    inputs = gaussian((tokens, width), 2, 1.0) * loudness
    return inputs.T @ inputs / tokens


def curvature(shape: tuple[int, int], size: float = 1e-2) -> Curvature:
    """Of loud and quiet rows and columns; one of each costs nothing. size: Σ C."""
    rows, columns = (torch.exp(gaussian((length,), 3, 1.5)) for length in shape)
    rows[:1] = columns[:1] = 0
    total = rows.sum() * columns.sum()
    if not total > 0:
        return Curvature(0 * columns, 0 * rows)
    return Curvature(size * columns / columns.sum(), size * rows / rows.sum())


# what a class says of itself


def check_class(codec_class: type[Codec]) -> None:
    """It is registered, describes itself, and each of its choices can be chosen."""
    assert CODECS.find(codec_class.name) is codec_class
    assert codec_class.summary.endswith("."), "the summary is a sentence"
    assert codec_class.source, "a codec names its source"
    assert codec_class.examples, "a codec has examples"
    others = [choice for codec in CODECS.values() for choice in codec.choices]
    for choice in codec_class.choices:
        assert not choice.begin.keys() & choice.fields.keys()
        labels = [other.label for other in others]
        assert labels.count(choice.label) == 1, f"another codec is called {choice.label!r}"
        fields = {"codec": codec_class.name, **choice.fields}
        strength = choice.strength
        if strength is None:
            assert make_codec(fields).choice == choice
            assert make_codec({**choice.begin, **fields}).choice == choice
            continue
        assert strength.least <= strength.start <= strength.most
        for value in (strength.least, strength.start, strength.most):
            for begin in ({}, choice.begin):
                codec = make_codec({**begin, **fields, strength.field: strength.number(value)})
                assert codec.choice == choice
                assert strength.field in codec.fields_beside_strength()


def check_parameters(codec: Codec) -> None:
    """They travel in recipes and manifests as plain values, and cannot be changed."""
    assert make_codec(codec.dump()) == codec
    assert hash(codec) == hash(make_codec(codec.dump()))
    assert codec.label
    assert "\n" not in codec.label


# packing


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
    of the base and is finite; a codec of deltas gives W_base + F(W − W_base), rounded once; a
    lossless one gives W.
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
        assert same_bits(restored, (decoded + base.float()).to(base.dtype))
    return parts, restored


def check_encoding(
    codec: DeltaCodec, delta: torch.Tensor, context: EncodeContext
) -> tuple[Parts, torch.Tensor]:
    """Encode a delta `[out, in]` and decode it, without the moments: (parts, Δ̂ float32)."""
    shape, before = (delta.shape[0], delta.shape[1]), delta.clone()
    parts = codec.encode(delta, context)
    assert same_bits(delta, before), "encode changed its input"
    check_promise(codec, parts, shape, context.dtype)
    decoded = codec.decode(parts, shape, EncodeContext(context.dtype, context.seed))
    assert decoded.dtype is torch.float32
    assert tuple(decoded.shape) == shape
    assert bool(torch.isfinite(decoded).all())
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
        removal = known_costs.cost(weight - base)
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


# tuning


def check_tuning(codec: Codec) -> None:
    """What it names as tunable gives the delta that it decodes, before and after values change;
    gradients are those of differences; what is stored again fits in the same places, and values
    that did not change give the same bits."""
    for shape, dtype in (
        ((13, 29), torch.bfloat16),
        ((16, 128), torch.float32),
        ((0, 5), DTYPES[0]),
    ):
        base = gaussian(shape, 1, 1.0).to(dtype)
        weight = (base.float() + gaussian(shape, 2)).to(dtype)
        settled, context = codec.fit([weight.float() - base.float()]), EncodeContext(dtype, 5)
        parts = settled.pack(weight, base, EncodeContext(dtype, 5, second_moments(shape[1])))
        before = {name: part.clone() for name, part in parts.items()}
        tunable = settled.tunable(parts, shape, context)
        if tunable is None:
            assert not isinstance(settled, DeltaCodec), "a codec of deltas lets its base be tuned"
            return
        assert tunable.values.keys() == tunable.kinds.keys()
        assert set(tunable.kinds.values()) <= set(TUNED_KINDS)
        stored = tunable.store(tunable.values)
        assert stored.keys() <= parts.keys()
        assert same_parts({**parts, **stored}, parts), "unchanged values give other bits"
        check_tuned(settled, parts, tunable, tunable.values, shape, context)
        noise = {name: gaussian(value.shape, 3, 0.2) for name, value in tunable.values.items()}
        changed = {
            name: (value.float() * (1 + noise[name])).to(value.dtype)
            for name, value in tunable.values.items()
        }
        again = {**parts, **tunable.store(changed)}
        check_promise(settled, again, shape, dtype)
        lengths = [{name: len(part) for name, part in each.items()} for each in (parts, again)]
        assert lengths[0] == lengths[1], "tuning changed a part's length"
        check_tuned(settled, again, tunable, changed, shape, context)
        check_gradients(tunable, shape)
        assert same_parts(parts, before), "tuning changed the parts"


def check_tuned(
    codec: Codec,
    parts: Parts,
    tunable: Tunable,
    values: Mapping[str, torch.Tensor],
    shape: tuple[int, int],
    context: EncodeContext,
) -> None:
    """The delta from these values is the one that the codec decodes from parts that hold them."""
    delta = tunable.decode({name: value.float() for name, value in values.items()})
    zeros = torch.zeros(shape)
    decoded = codec.unpack(parts, zeros, context)
    assert delta.shape == decoded.shape
    assert delta.dtype is torch.float32
    largest = decoded.abs().amax() if decoded.numel() else zeros.sum()
    assert bool(((delta - decoded).abs() <= 1e-5 * largest).all()), "another delta than is decoded"


def check_gradients(tunable: Tunable, shape: tuple[int, int]) -> None:
    """The derivative of the delta in a direction of its values, against central differences, which
    are exact for products of two."""
    values = {name: value.float().requires_grad_() for name, value in tunable.values.items()}
    if not values or not math.prod(shape):
        return
    directions = {name: 0.5 * value.detach() for name, value in values.items()}
    weights = gaussian(shape, 4, 1.0)
    total = (tunable.decode(values) * weights).sum()
    gradients = torch.autograd.grad(total, [*values.values()])
    slope = sum(
        float((gradient * direction).sum(dtype=torch.float64))
        for gradient, direction in zip(gradients, directions.values(), strict=True)
    )
    ahead, behind = (
        tunable.decode({name: v.detach() + step * directions[name] for name, v in values.items()})
        for step in (0.5, -0.5)
    )
    difference = float(((ahead - behind) * weights).sum(dtype=torch.float64))
    scale = float((tunable.decode(values).detach() * weights).abs().sum(dtype=torch.float64))
    assert abs(slope - difference) <= 1e-4 * scale, (slope, difference)


# predictions


@dataclass(frozen=True)
class MeasuredStatistics:
    """`DeltaStatistics` of deltas that are at hand, `[out, in]` each, in float64."""

    deltas: Sequence[torch.Tensor]
    groups: int = 1

    def energy_of_rank(self, rank: int) -> float:
        squares = [torch.linalg.svdvals(delta.double()).square() for delta in self.deltas]
        total = sum(float(each.sum()) for each in squares)
        return sum(float(each[:rank].sum()) for each in squares) / total

    def energy_of_smallest(self, share: float) -> float:
        squares = torch.cat([delta.double().flatten() for delta in self.deltas]).square()
        ordered = squares.sort().values
        return float(ordered[: round(share * len(ordered))].sum() / ordered.sum())


def check_expected(codec: Codec) -> None:
    """On Gaussian deltas gain and noise are near the expected ones, where there are any."""
    deltas = [gaussian(GAUSSIAN_SHAPE, seed) for seed in (1, 2)]
    expected = codec.expected(MeasuredStatistics(deltas))
    if expected is None:
        return
    settled, base = codec.fit(deltas), torch.zeros(GAUSSIAN_SHAPE)
    lost = shared = energy = 0.0
    for seed, delta in enumerate(deltas):
        context = EncodeContext(torch.float32, seed)
        restored = settled.unpack(settled.pack(delta, base, context), base, context)
        exact = delta.double()
        rest = restored.double() - exact
        lost += float(rest.square().sum())
        shared += float((rest * exact).sum())
        energy += float(exact.square().sum())
    missing, error = -shared / energy, math.sqrt(lost / energy)
    noise = math.sqrt(max(lost / energy - missing**2, 0.0))
    for measured, wanted in ((error, expected.error), (noise, expected.noise)):
        assert measured >= LEAST_OF_EXPECTED * wanted - 1e-5, (expected, measured)
        assert measured <= MOST_OF_EXPECTED * wanted + 1e-5, (expected, measured)
    chance = CHANCE * expected.noise / math.sqrt(2 * math.prod(GAUSSIAN_SHAPE))
    least, most = (
        bound**2 * (1 - expected.gain) for bound in (LEAST_OF_EXPECTED, MOST_OF_EXPECTED)
    )
    assert missing >= least - GAIN_TOLERANCE - chance, (expected, missing)
    assert missing <= most + GAIN_TOLERANCE + chance, (expected, missing)


CHECKS: tuple[Callable[[Codec], None], ...] = (
    check_parameters,
    check_shapes,
    check_pieces,
    check_damage,
    check_tuning,
    check_expected,
)


def check_codec(codec: Codec) -> None:
    """Every check of one codec."""
    for check in CHECKS:
        check(codec)


def same_parts(parts: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Whether they have the same names and bits."""
    return parts.keys() == others.keys() and all(
        same_bits(part, others[name]) for name, part in parts.items()
    )


def same_bits(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and bits: −0 is not 0."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    raw, wanted = (each.contiguous().view(-1).view(torch.uint8) for each in (tensor, other))
    return torch.equal(raw, wanted)
