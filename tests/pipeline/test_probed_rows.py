"""What rounding to the weights' dtype does is judged by some rows of a matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.codec_support import gauss

from ders_core.codecs import DeltaCodec, EncodeContext, Sparse, make_codec
from ders_core.pipeline import knowledge
from ders_core.pipeline.judge import Probe
from ders_core.pipeline.knowledge import encode_expert


@pytest.mark.parametrize(
    "fields",
    [
        {"codec": "quantized", "bits": 3},
        {"codec": "quantized", "grid": "ternary", "group_size": 16},
        {"codec": "quantized", "bits": 5, "grid": "affine", "scale_bits": 8},
        {"codec": "sparse", "drop_rate": 0.5},
        {"codec": "sparse", "pattern": "2:4"},
        {"codec": "entropy", "bits": 0.4},
        {"codec": "entropy", "bits": 3, "rounding": "unbiased"},
        {"codec": "lowrank", "rank": 4},
    ],
)
@pytest.mark.parametrize("most", [50, 1000])
def test_rounding_is_that_of_the_rows_in_the_middle(
    fields: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """‖Ŵ−W‖² of them in float64, with the sum rounded and not."""
    monkeypatch.setattr(knowledge, "PROBED_ROWS", most)
    codec, shape = make_codec(fields), (130, 37)
    assert isinstance(codec, DeltaCodec)
    base = gauss(shape, 1).bfloat16()
    weight = (base.float() + 0.1 * gauss(shape, 2)).bfloat16()
    context = EncodeContext(torch.bfloat16, 3)
    found = encode_expert(codec, weight, base, context, rounded_from=base)
    rows = slice(40, 90) if most == 50 else slice(0, 130)
    exact = base.double() + codec.decode(found.parts, shape, context).double()
    rounded = codec.unpack(found.parts, base, context).double()
    wanted = [(each - weight.double())[rows].square().sum().item() for each in (rounded, exact)]
    probe = found.losses.probe
    assert [probe.rounded, probe.unrounded] == pytest.approx(wanted, rel=1e-6)
    assert wanted[0] != wanted[1]
    whole = (rounded - weight.double()).square().sum().item()
    assert found.losses.squares.error == pytest.approx(whole)
    assert encode_expert(codec, weight, base, context).losses.probe == Probe()


@pytest.mark.parametrize(
    "fields",
    [
        {"drop_rate": 0.5},
        {"drop_rate": 0.5, "value_bits": 4},
        {"drop_rate": 0.5, "draws": "matrix"},
        {"drop_rate": 0.5, "method": "magnitude"},
        {"drop_rate": 0.5, "method": "della", "value_bits": 8},
        {"pattern": "2:4"},
    ],
    ids=str,
)
def test_kept_entries_are_read_once(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the weight, and for however many rows a delta is decoded of at a time; and what comes
    back is the same as of all rows at once."""
    reads, stored = list[Sparse](), Sparse._stored

    def counted(codec: Sparse, *rest: Any) -> Any:
        reads.append(codec)
        return stored(codec, *rest)

    codec, shape, context = (
        Sparse.model_validate(fields),
        (130, 37),
        EncodeContext(torch.bfloat16, 3),
    )
    base = gauss(shape, 1).bfloat16()
    parts = codec.pack((base.float() + 0.1 * gauss(shape, 2)).bfloat16(), base, context)
    whole, delta = codec.unpack(parts, base, context), codec.decode(parts, shape, context)
    monkeypatch.setattr(Sparse, "_stored", counted)
    pieces, decode = codec.unpack_and_decode(parts, base, context)
    rows = [decode(slice(first, first + 26)) for first in range(0, 130, 26)]
    assert torch.equal(torch.cat(rows), delta)
    assert torch.equal(torch.cat([*pieces]).view(shape), whole)
    assert reads == [codec]
