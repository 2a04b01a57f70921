"""Many codecs judged at once, against what each is told to lose alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.codec_support import gauss

from ders_core.codecs import Codec, EncodeContext, Entropy, Keep, Quantized, Sparse
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.tried_matrix import TriedMatrix
from ders_core.decompose.distortion import sums_of
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.judge import Judge, Losses
from ders_core.tune import sampled_judge
from ders_core.tune.sampled_judge import SampledJudge

TOO_FINE = Entropy(knob=1e-12, steps="sensitive", rounding="unbiased")
CODECS: Sequence[Codec] = (
    Quantized(bits=1),
    Sparse(drop_rate=0.9, gain="auto"),
    TOO_FINE,
    Quantized(bits=4),
    Keep(),
    Sparse(pattern="1:4", value_bits=4),
)
TOLD = ("output", "energy", "noise_cost", "router_noise", "effective_gain")


def curvature(seed: int, out: int, width: int) -> Curvature:
    columns, rows = gauss((width,), seed).square(), gauss((out,), seed + 1).square()
    return Curvature(columns, rows * (columns.sum() / rows.sum()))


@pytest.mark.parametrize("values", [1, 1 << 20])
@pytest.mark.parametrize("shrinks", [True, False])
@pytest.mark.parametrize(("out", "width", "full"), [(100, 300, True), (24, 40, False)])
def test_many_lose_what_each_does_alone(
    out: int, width: int, full: bool, shrinks: bool, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another, and all in one stack; what cannot be coded has no place in it."""
    monkeypatch.setattr(sampled_judge, "VALUES", values)
    base = gauss((out, width), 1).bfloat16()
    weight = (base.float() + gauss((out, width), 2, 0.02)).bfloat16()
    inputs = gauss((500, width), 3)
    moments = inputs.T @ inputs / 500
    known = Inputs.of(moments.clone() if full else moments.diagonal().clone(), 500)
    cost, router = curvature(4, out, width), curvature(6, out, width)
    context = EncodeContext(torch.bfloat16, 3, known.believed, cost, 0.1, 4)
    knowledge = weight, base, context, cost, router, known, shrinks
    alone = Judge(*knowledge)
    told = list(SampledJudge(*knowledge).tried(CODECS))
    assert [each is None for each in told] == [codec is TOO_FINE for codec in CODECS]
    for codec, each in zip(CODECS, told, strict=True):
        if each is not None:
            found, ragged = each
            back, nbytes = codec.tried(TriedMatrix(weight, base), context)
            squares = sums_of(back, weight, base)
            sums = alone.sums(back, back, squares, squares, squares.new_zeros(2))
            wanted = Losses.of(sums.tolist())
            assert (found.squares, found.own, ragged) == (wanted.squares, wanted.own, nbytes)
            for name in TOLD:
                of_all = getattr(wanted, name)
                assert getattr(found, name) == pytest.approx(of_all, rel=1e-4, abs=1e-12)
