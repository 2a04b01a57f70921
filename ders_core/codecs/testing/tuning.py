"""Checks of what a codec lets be tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ders_core.codecs.codec import Codec, DeltaCodec, EncodeContext, Parts
from ders_core.codecs.testing.inputs import DTYPES, gaussian, second_moments
from ders_core.codecs.testing.packing import check_promise
from ders_core.codecs.testing.sameness import same_parts
from ders_core.codecs.tunable import TUNED_KINDS, Tunable


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
