"""What a codec gives back in pieces loses what the whole does, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, make_codec
from ders_core.codecs.fitting import codes
from ders_core.compute import kernels
from ders_core.compute.sums import SUMMED_FIRST
from ders_core.decompose.distortion import sums_of, sums_of_pieces
from ders_core.pipeline.given_back import keeping, whole
from ders_core.pipeline.knowledge import encode_expert

PLAIN = EncodeContext(torch.bfloat16, 3)


def pair(shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and its base."""
    base = gauss(shape, 1).to(dtype)
    return (base.float() + 0.1 * gauss(shape, 2)).to(dtype), base


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 1},
        {"bits": 4},
        {"grid": "ternary", "group_size": 16},
        {"bits": 3, "grid": "affine", "scale_bits": 8},
        {"bits": 2, "grid": "learned"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("width", "count"), [(64, 6), (72, 2), (33, 1)])
def test_pieces_are_the_whole(
    fields: dict[str, Any],
    dtype: torch.dtype,
    width: int,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows so many that codes fill whole bytes, and values whole sums."""
    for name in ("LEAST", "CHUNK"):
        monkeypatch.setattr(codes, name, 1)
    codec, (weight, base) = make_codec({"codec": "quantized", **fields}), pair((211, width), dtype)
    context = EncodeContext(dtype, 3)
    encoded = encode_expert(codec, weight, base, context)
    pieces = [*codec.unpack_in_pieces(encoded.parts, base, context)]
    assert len(pieces) == count
    assert all(piece.numel() % SUMMED_FIRST == 0 for piece in pieces[:-1])
    whole = codec.unpack(encoded.parts, base, context)
    assert torch.equal(torch.cat(pieces).view(base.shape), whole)
    assert torch.equal(encoded.sums[:4], sums_of(whole, weight, base))
    error, delta = (weight.double() - each.double() for each in (whole, base))
    exact = [error.square(), delta.square(), weight.double().square(), error * delta]
    assert encoded.sums[:4].tolist() == pytest.approx([float(each.sum()) for each in exact])


@pytest.mark.parametrize("cut", [SUMMED_FIRST, 3 * SUMMED_FIRST, 5 * SUMMED_FIRST])
def test_sums_do_not_depend_on_the_pieces(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether loops take them."""
    weight, base = pair((43, 31), torch.bfloat16)
    made = (weight.float() + 0.01 * gauss(weight.shape, 3)).bfloat16()
    whole = sums_of(made, weight, base)
    pieces = made.view(-1).tensor_split([cut])
    assert torch.equal(sums_of_pieces(pieces, weight, base), whole)
    monkeypatch.setattr(kernels, "takes_stored", lambda *_: False)
    assert torch.equal(sums_of_pieces(pieces, weight, base), whole)


def test_rows_are_kept_as_they_go_by() -> None:
    matrix = gauss((12, 5))
    for rows in (slice(0, 12), slice(3, 9), slice(4, 5), slice(12, 12)):
        for cuts in ([], [7, 30], [15, 20, 45]):
            kept, pieces = torch.zeros(matrix[rows].shape), matrix.view(-1).tensor_split(cuts)
            assert all(map(torch.equal, keeping(pieces, rows, kept), pieces))
            assert torch.equal(kept, matrix[rows])
            assert torch.equal(whole(pieces, torch.empty(12, 5)), matrix)
