"""Work in pieces gives what work on the whole gives; for codecs see test_conformance.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs.fitting.select import largest, largest_read
from ders_core.compute import pieces as chunks
from ders_core.compute.pieces import at_least, largest_magnitude

NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@settings(max_examples=150, deadline=None)
@given(values=st.lists(NUMBERS, min_size=1, max_size=60), data=st.data())
def test_the_largest_of_pieces_are_those_of_the_whole(
    values: list[float], data: st.DataObject
) -> None:
    count, step = data.draw(st.integers(0, len(values))), data.draw(st.integers(1, 20))
    whole = torch.tensor(values, dtype=torch.float32)
    order = np.argsort(-np.abs(whole.numpy().astype(np.float64)), kind="stable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", step)
        room = torch.empty(step)

        def read(piece: slice) -> torch.Tensor:
            """Into one room, over what was read before."""
            return room[: piece.stop - piece.start].copy_(whole[piece])

        places = largest_read(read, len(values), count, whole.device)
        assert torch.equal(places, largest(whole, count))
    assert places.tolist() == sorted(order[:count].tolist())
    assert largest_magnitude(whole) == float(whole.abs().max())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.uint8], ids=str)
def test_at_least_finds_every_place(dtype: torch.dtype) -> None:
    values = torch.tensor([3, 0, 5, 4, 5], dtype=dtype)
    assert at_least(values, 4).tolist() == [2, 3, 4]
    assert at_least(values[:0], 4).tolist() == []
    assert largest_magnitude(torch.empty(0)) == 0.0
