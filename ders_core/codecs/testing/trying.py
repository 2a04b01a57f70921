"""Checks of what a codec tells without making its parts."""

from __future__ import annotations

import torch

from ders_core.codecs.codec import Codec, EncodeContext
from ders_core.codecs.testing.inputs import curvature, gaussian, second_moments
from ders_core.codecs.testing.sameness import same_bits
from ders_core.codecs.tried_matrix import TriedMatrix

SHAPES = ((0, 5), (13, 29), (96, 64))

TOLD_SHARE, TOLD_BYTES = 0.01, 64
"""How far bytes that are told may be from those of parts: a share of them, and so many beside."""


def check_tried(codec: Codec) -> None:
    """Ŵ is that of the parts, bit by bit, and bytes are about theirs."""
    for shape in SHAPES:
        weight, base = (gaussian(shape, seed, 0.05).bfloat16() for seed in (1, 2))
        known = second_moments(shape[1]), curvature(shape)
        context = EncodeContext(torch.bfloat16, 5, *known, removal=1e-3)
        fitted = codec.fit([weight.float() - base.float()])
        parts = fitted.pack(weight, base, context)
        matrix = TriedMatrix(weight, base)
        tried, told = fitted.tried(matrix, context)
        assert same_bits(tried, fitted.unpack(parts, base, context))
        assert same_bits(fitted.tried(matrix, context)[0], tried), "the first try changed something"
        taken = sum(parts[name].nbytes for name in fitted.ragged)
        assert abs(told - taken) <= TOLD_SHARE * taken + TOLD_BYTES, f"{told} bytes are {taken}"
