"""Coded parts read twice: by compiled loops, which check no index, and by numpy and torch, which
do."""

from __future__ import annotations

from collections.abc import Mapping
from unittest.mock import patch

import torch
from support.bounded_time import at_most
from support.every_reader import is_line

from ders_core.codecs import Codec, EncodeContext
from ders_core.errors import CodecError

SECONDS = 20
"""For one reading; it takes a thousandth of one."""


def is_refused(codec: Codec, parts: Mapping[str, torch.Tensor], base: torch.Tensor) -> bool:
    """Whether both readings refuse the parts, in one sentence each. Otherwise both must give the
    same weights `[out, in]`, bit by bit but for which NaN."""
    outcomes: list[torch.Tensor | None] = []
    refusals: list[str] = []
    for compiled in (True, False):
        with (
            at_most(SECONDS),
            patch("ders_core.compute.kernels._installed", return_value=compiled),
        ):
            try:
                weight = codec.unpack(parts, base, EncodeContext(base.dtype, 5))
            except CodecError as error:
                refusals.append(str(error))
                outcomes.append(None)
                continue
        assert weight.shape == base.shape
        assert weight.dtype is base.dtype
        outcomes.append(weight)
    assert all(map(is_line, refusals)), refusals
    one, other = outcomes
    assert (one is None) == (other is None), "compiled loops and numpy disagree"
    if one is None or other is None:
        return True
    same = (one == other) & (one.signbit() == other.signbit()) | (one.isnan() & other.isnan())
    assert bool(same.all()), "compiled loops and numpy give other weights"
    return False
