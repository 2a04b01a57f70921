"""What codecs pack, give back and multiply does not depend on the number of threads."""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import torch
from support.codec_support import NAMED, context, gauss, inputs, second_moments

from ders_core.codecs import Codec, DeltaCodec, make_codec
from ders_core.compute import row_pieces
from ders_core.compute.threads import one_thread, threads_of_torch

SHAPES = (75, 44), (40, 72)
"""Rows that no number of threads divides; rows of codes that end within a byte, and with one."""


class CountedPool:
    """The pool that stays, and how many pieces of rows it was given."""

    def __init__(self, pool: Executor) -> None:
        self._pool, self.pieces = pool, 0

    def submit(self, *call: Any) -> Future[None]:
        self.pieces += 1
        return self._pool.submit(*call)


def digest(codec: Codec, calibrated: bool) -> str:
    """Of all that comes of a weight: parts, what they give back, whole and in rows, products."""
    found, plain = hashlib.sha256(), context(torch.bfloat16)
    for shape in SHAPES:
        delta, base = gauss(shape), gauss(shape, 1, 1.0).bfloat16()
        weight = (base.float() + delta).bfloat16()
        settled = codec.fit([delta])
        moments = second_moments(inputs(shape[1])) if calibrated else None
        model = context(torch.bfloat16, moments=moments)
        parts = settled.pack(weight, base, model)
        held = settled.held_form(shape)
        tensors = []
        for form, those in ((settled, parts), (held, settled.held_parts(parts, shape, plain))):
            tensors += [*(those[name] for name in sorted(those)), form.unpack(those, base, plain)]
            if isinstance(form, DeltaCodec):
                pieces, rows = form.unpack_with_rows(slice(8, 40), those, base, plain)
                tensors += [*pieces, rows]
                tensors.append(form.product(those, inputs(shape[1], tokens=3), shape, plain))
        for tensor in tensors:
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("fields", [*NAMED, pytest.param({"codec": "lossless"}, id="lossless")])
def test_bytes_do_not_depend_on_the_number_of_threads(
    fields: dict[str, Any], calibrated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As groups are encoded, with rows shared out however few they are. Factors in 16 bits are
    multiplied by torch, and what is lossless is read in one order."""
    pool = CountedPool(row_pieces._pool())
    monkeypatch.setattr(row_pieces, "_pool", lambda: pool)
    monkeypatch.setattr(row_pieces, "LEAST", 1)
    codec, digests, pieces = make_codec(fields), set(), []
    for threads in (1, 3, 5):
        pool.pieces = 0
        with threads_of_torch(threads), one_thread():
            digests.add(digest(codec, calibrated))
        pieces.append(pool.pieces)
    assert len(digests) == 1
    shares_out = fields["codec"] not in ("lossless", "lowrank") or "factor_bits" in fields
    assert pieces[0] == 0
    assert all(pieces[1:]) == shares_out
