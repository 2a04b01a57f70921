"""What encoding holds beside experts and their base: told beforehand, and a bound of what is
measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from support.gate_experts import gates, write_experts
from support.held_tensors import most_held

from ders_core.checkpoint import ExpertGroup
from ders_core.codecs import Chain, Codec, EncodeContext, Entropy, LowRank, Quantized, Sparse
from ders_core.codecs.fitting import block_codes, directions
from ders_core.codecs.fitting.in_turn import ROWS
from ders_core.codecs.group import GroupCodec
from ders_core.codecs.testing.inputs import curvature
from ders_core.compute import buffers, triangles
from ders_core.compute.threads import HELPING_BYTES, one_thread, threads_of_torch
from ders_core.pipeline import judge
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.calibration import Calibration, write_calibration
from ders_core.pipeline.holding import holding_of
from ders_core.pipeline.knowledge import encode_expert
from ders_core.pipeline.needed_beside import needed_beside
from ders_core.recipe import Recipe, Rule

T = TypeVar("T")


@pytest.mark.parametrize("shape", [(4096, 1024), (1024, 4096)], ids=str)
@pytest.mark.parametrize("fields", [{}, {"factor_bits": 4}], ids=str)
def test_low_rank_holds_no_more_than_it_tells(
    shape: tuple[int, int], fields: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all steps of the Krylov space; and a third of what is told is held, and a delta in
    float32 takes more."""
    monkeypatch.setattr(directions, "_is_settled", lambda *_: False)
    random, codec = torch.Generator().manual_seed(0), LowRank(rank=48, **fields)
    weight, base = torch.randn(2, *shape, generator=random).bfloat16()
    context = EncodeContext(torch.bfloat16, 0)
    with torch.inference_mode(), one_thread():
        held = most_held(lambda: encode_expert(codec, weight, base, context))
    assert held <= codec.beside_bytes(shape) <= 3 * held


def test_low_rank_of_a_large_matrix_needs_less_than_its_weight() -> None:
    """Of Mixtral's size, where a delta would take twice as much as the weight."""
    shape = (14336, 4096)
    assert LowRank(rank=64).beside_bytes(shape) < 2 * shape[0] * shape[1]


@pytest.mark.parametrize(
    ("rounding", "steps"), [("unbiased", "even"), ("nearest", "sensitive")], ids=str
)
@pytest.mark.parametrize("bits", [0.2, 0.7, 1, 2, 5, 8])
def test_entropy_holds_no_more_than_it_tells(bits: float, rounding: str, steps: str) -> None:
    """Also where an outlier in the last rows makes codes wider, and rows are probed."""
    shape, random = (8192, 2816), torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=random).bfloat16()
    weight = (base.float() + 0.03 * torch.randn(shape, generator=random)).bfloat16()
    codec = Entropy(bits=bits, rounding=rounding, steps=steps)
    context = EncodeContext(torch.bfloat16, 0, None, curvature(shape))
    told = codec.beside_bytes(shape)
    for outlier in (0.0, 1e4):
        weight[-1, -1] += outlier
        with torch.inference_mode(), one_thread():
            held = most_held(lambda: encode_expert(codec, weight, base, context, rounded_from=base))
        assert held <= told
    assert told <= 2.5 * held


def test_entropy_tells_more_where_bits_do_not_bound_it() -> None:
    shape = (1 << 12, 1 << 14)
    size = math.prod(shape)
    assert Entropy(bits=1).beside_bytes(shape) < 3.3 * size
    for codec in (
        Entropy(bits=1, gain="auto"),
        Entropy(bits=1, rounding="compensated"),
        Entropy(knob=1, steps="sensitive"),
    ):
        assert codec.beside_bytes(shape) == 8 * size


@pytest.mark.parametrize(
    ("is_full", "is_charged"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_quantized_holds_no_more_than_it_tells_with_a_calibration(
    is_full: bool, is_charged: bool
) -> None:
    """With gradients all of Ŵ is looked at, and else some rows where moments are full."""
    random, width, codec = torch.Generator().manual_seed(0), 1024, Quantized(bits=4)
    weight, base = torch.randn(2, 8192, width, generator=random).bfloat16()
    values = torch.randn(2 * width, width, generator=random)
    moments = values.T @ values / len(values)
    inputs = Inputs.of(moments if is_full else moments.diagonal().clone(), 2.0 * width)
    context, charge = EncodeContext(torch.bfloat16, 0, inputs.believed), None
    if is_charged:
        charge = curvature((8192, width))
    with torch.inference_mode(), one_thread():
        held = most_held(lambda: encode_expert(codec, weight, base, context, charge, inputs=inputs))
    makes_whole = is_charged or not is_full
    told = codec.calibrated_bytes((8192, width), is_full=is_full, makes_whole=makes_whole)
    told += codec.shared_bytes(width) if is_full else 0
    told += 0 if makes_whole else 2 * judge.OUTPUT_ROWS * width
    assert held <= told <= 3 * held


def test_a_piece_that_others_help_with_holds_no_more_than_it_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With full moments: factors of these, rows that are rounded, and outputs. So helpers together
    hold no more than `HELPING_BYTES`."""
    shares = dict[str, float]()

    def measured(
        place: str, work: Callable[[T], object], pieces: Iterable[T], held: int = 0
    ) -> None:
        for piece in pieces:
            share = most_held(partial(work, piece)) / max(held, 1)
            shares[place] = max(share, shares.get(place, 0.0))

    places = {"rows": block_codes, "outputs": judge, "factors": triangles}
    for place, module in places.items():
        monkeypatch.setattr(module, "each_piece", partial(measured, place))
    random, width = torch.Generator().manual_seed(0), 1024
    weight, base = torch.randn(2, 1024, width, generator=random).bfloat16()
    values = torch.randn(2 * width, width, generator=random)
    inputs = Inputs.of(values.T @ values / len(values), 2.0 * width)
    context = EncodeContext(torch.bfloat16, 0, inputs.believed)
    with torch.inference_mode(), one_thread():
        encode_expert(Quantized(bits=4), weight, base, context, inputs=inputs)
    assert shares.keys() == places.keys()
    assert all(0.3 <= share <= 1 for share in shares.values()), shares


@pytest.mark.parametrize("width", [4096, 14336])
def test_mixtral_has_help_with_rows_that_are_rounded(width: int) -> None:
    """Also of the matrices whose rows are longest."""
    assert HELPING_BYTES // (block_codes.PIECE_BYTES * ROWS * width) >= 1


@pytest.mark.parametrize(
    "codec",
    [
        Quantized(bits=4),
        LowRank(rank=2),
        Chain(stages=(LowRank(rank=1), Quantized(bits=2))),
    ],
    ids=lambda codec: codec.name,
)
def test_what_a_group_needs_depends_on_what_was_measured(codec: Codec, tmp_path: Path) -> None:
    """Without a calibration, with diagonals, with full moments, and with those of each expert."""
    write_experts(tmp_path / "model", 4)
    group, each = gates(tmp_path / "model"), GroupCodec.same(codec, 4)
    shape, square = (group.shape[1], group.shape[2]), 4 * group.shape[2] ** 2
    unit = torch.eye(group.shape[2])
    full = {"0.in.moments": unit, "0.routed": torch.tensor([9] * 4)}
    found = []
    for name, tensors in (
        ("diagonal", full | {"0.in.moments": torch.ones(group.shape[2])}),
        ("full", full),
        ("each", full | {"0.in.each": unit.expand(4, -1, -1).contiguous()}),
    ):
        path = tmp_path / f"{name}.safetensors"
        write_calibration(path, "0" * 64, 36, tensors)
        recipe = Recipe(name="x", rules=(Rule(codec=codec),), calibration=path)
        found.append(needed_beside(group, recipe, each))
    plain = Recipe(name="x", rules=(Rule(codec=codec),))
    assert needed_beside(group, plain, each) == (codec.beside_bytes(shape), 0)
    factor = codec.shared_bytes(group.shape[2])
    assert factor >= square
    assert found[0] == (codec.calibrated_bytes(shape, is_full=False, makes_whole=True), 0)
    beside = codec.calibrated_bytes(shape, is_full=True, makes_whole=True)
    assert found[1] == (beside, square + factor)
    assert found[2] == (beside + factor, 5 * square + factor)


@pytest.mark.parametrize(("threads", "count"), [(1, 6), (2, 5)])
def test_with_full_moments_most_experts_of_mixtral_are_held(
    threads: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As only some rows of what comes back are looked at; with gradients all are, and then two
    threads leave no room for half of them."""
    shape, codec = (14336, 4096), Quantized(bits=4)
    write_experts(tmp_path / "model", 8)
    group, each = gates(tmp_path / "model"), GroupCodec.same(codec, 8)
    monkeypatch.setattr(ExpertGroup, "shape", (8, *shape))
    path = tmp_path / "calibration.safetensors"
    tensors = {"0.in.moments": torch.eye(4), "0.routed": torch.tensor([9] * 8)}
    write_calibration(path, "0" * 64, 36, tensors)
    recipe = Recipe(name="x", rules=(Rule(codec=codec),), calibration=path)
    rows = 2 * judge.OUTPUT_ROWS * shape[1]
    told = codec.calibrated_bytes(shape, is_full=True, makes_whole=False) + rows
    assert needed_beside(group, recipe, each)[0] == told
    with threads_of_torch(threads):
        holding = holding_of(group, recipe, each, "cpu")
        assert holding is not None
        assert holding.count == count
        monkeypatch.setattr(Calibration, "has_gradients", True)
        told = codec.calibrated_bytes(shape, is_full=True, makes_whole=True)
        assert needed_beside(group, recipe, each)[0] == told
        assert threads == 1 or holding_of(group, recipe, each, "cpu") is None


@pytest.mark.parametrize(
    "codec", [Quantized(bits=1), Quantized(bits=4, group_size=64), Sparse(drop_rate=0.9)], ids=str
)
def test_what_a_codec_needs_beside_an_expert_is_what_it_holds(codec: Codec) -> None:
    """Of what is reused: large tensors."""
    random = torch.Generator().manual_seed(0)
    weight, base = torch.randn(2, 4096, 2048, generator=random).bfloat16()
    before = buffers._account.in_use
    with one_thread(), buffers.memory_is_reused():
        context = EncodeContext(dtype=torch.bfloat16, seed=0)
        encode_expert(codec, weight, base, context, rounded_from=base)
        assert buffers._account.most - before <= codec.beside_bytes((4096, 2048))


def test_a_codec_that_does_not_tell_needs_a_delta_and_more() -> None:
    shape = (1 << 12, 1 << 14)
    size = math.prod(shape)
    assert Sparse(drop_rate=0.9, method="magnitude").beside_bytes(shape) == 8 * size
    assert Quantized(bits=4, grid="learned").beside_bytes(shape) == 8 * size
    assert Quantized(bits=4, gain="auto").beside_bytes(shape) == 8 * size
    assert Quantized(bits=4).beside_bytes(shape) < size
