"""`chain`: the sum of stages, each fitted to what those before it left."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import (
    context,
    gauss,
    inputs,
    output_error,
    relative,
    round_trip,
    second_moments,
)
from support.counted_device import DEVICE, counted_waits

from ders_core.codecs import Chain, DeltaCodec, Entropy, LowRank, Quantized, Sparse, make_codec

STAGES: list[DeltaCodec] = [
    LowRank(rank=3),
    Sparse(drop_rate=0.9, method="magnitude"),
    Sparse(drop_rate=0.9),
    Sparse(pattern="1:8", value_bits=8),
    Quantized(bits=2, group_size=16),
    Entropy(bits=0.5),
]


@settings(max_examples=40, deadline=None)
@given(
    stages=st.lists(st.sampled_from(STAGES), min_size=2, max_size=4), seed=st.integers(0, 2**62 - 1)
)
def test_it_is_the_sum_of_its_stages(stages: list[DeltaCodec], seed: int) -> None:
    """By hand: encode, decode, subtract, in any order."""
    delta, shape = gauss((12, 32)), (12, 32)
    chain = Chain(stages=tuple(stages))
    parts, decoded = round_trip(chain, delta, context(torch.bfloat16, seed))
    rest, total = delta, torch.zeros(shape)
    for number, stage in enumerate(stages):
        stage_context = context(torch.bfloat16, (seed + number * 0x9E3779B97F4A7C15) % 2**62)
        coded = stage.encode(rest, stage_context)
        assert all(torch.equal(parts[f"{number}.{name}"], part) for name, part in coded.items())
        step = stage.decode(coded, shape, stage_context)
        rest, total = rest - step, total + step
    assert torch.equal(decoded, total)
    assert make_codec(chain.dump()) == chain
    assert chain.exact == all(stage.exact for stage in stages)


def test_two_random_drops_do_not_drop_the_same() -> None:
    """Each stage draws with a seed of its own: two halves leave a quarter, not a half."""
    half = Sparse(drop_rate=0.5, rescale="none")
    delta = gauss((40, 50))
    decoded = round_trip(Chain(stages=(half, half)), delta, context())[1]
    share = float((decoded == 0).float().mean())
    assert share == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_low_rank_part_with_outliers_wants_a_chain(order: tuple[int, ...]) -> None:
    """Low-rank plus sparse plus noise: at fewer bytes a chain is closer than any stage alone."""
    delta = gauss((96, 4), 1, 0.3) @ gauss((4, 128), 2, 0.3) + gauss((96, 128), 3, 0.02)
    hit = torch.randperm(delta.numel(), generator=torch.Generator().manual_seed(0))[:120]
    delta.view(-1)[hit] += gauss((120,), 4, 3.0)
    stages = (
        LowRank(rank=4),
        Sparse(drop_rate=0.99, method="magnitude"),
        Quantized(bits=1, group_size=0),
    )
    bfloat16 = context(torch.bfloat16)
    chain = Chain(stages=tuple(stages[place] for place in order))
    alone = [LowRank(rank=16), Sparse(drop_rate=0.9, method="magnitude"), Quantized(bits=3)]
    errors = [relative(codec, delta, bfloat16) for codec in alone]
    if order == (1, 0, 2):  # outliers first: what is left has the low rank, and noise
        assert relative(chain, delta, bfloat16) < 0.5 * min(errors)
    else:
        assert relative(chain, delta, bfloat16) < max(errors)


def test_a_rank_by_energy_is_that_of_the_residual() -> None:
    delta = gauss((60, 3), 1) @ gauss((3, 80), 2)
    delta[5, 7] = 100.0  # it hides the three directions until it is taken away
    first: dict[str, Any] = {"codec": "sparse", "drop_rate": 0.999, "method": "magnitude"}
    chain = make_codec(
        {"codec": "chain", "stages": [first, {"codec": "lowrank", "energy": 0.999999}]}
    )
    assert not chain.settled
    fitted = chain.fit([delta, 2 * delta])
    assert isinstance(fitted, Chain)
    assert fitted.settled
    assert isinstance(fitted.stages[1], LowRank)
    assert 3 <= (fitted.stages[1].rank or 0) <= 7  # four more for the holes that were left
    assert LowRank(energy=0.999999).fit([delta]) == LowRank(rank=1)


def test_a_calibration_reaches_every_stage() -> None:
    delta, x = gauss((48, 64)), inputs(64)
    chain = Chain(stages=(LowRank(rank=4), Quantized(bits=2)))
    known = context(moments=second_moments(x))
    assert output_error(chain, delta, known, x) < 0.6 * output_error(chain, delta, context(), x)


def test_a_stage_without_parts_is_where_the_others_are() -> None:
    """A rank of 0 with factors in a few bits, on a device: nothing tells where it is."""
    delta, shape, plain = gauss((24, 32)), (24, 32), context()
    nothing = LowRank(bits=0.01, factor_bits=4)
    chain = Chain(stages=(nothing, Quantized(bits=2), nothing))
    parts = chain.encode(delta, plain)
    assert {name.partition(".")[0] for name in parts} == {"1"}
    expected = chain.decode(parts, shape, plain)
    with torch.inference_mode(), counted_waits():
        there = chain.encode(delta.to(DEVICE), plain)
        tunable = chain.tunable(there, shape, plain)
        values = {name: value.float() for name, value in tunable.values.items()}
        again = chain.decode(there, shape, plain).cpu(), tunable.decode(values).cpu()
        assert all(torch.equal(there[name].cpu(), part) for name, part in parts.items())
    assert torch.equal(again[0], expected)
    assert torch.equal(again[1], expected)
