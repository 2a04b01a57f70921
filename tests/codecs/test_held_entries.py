"""Sparse deltas that are held in memory row by row are the same deltas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.codec_support import gauss
from support.counted_device import DEVICE, counted_waits
from torch.utils._python_dispatch import TorchDispatchMode

from ders_core.codecs import Chain, EncodeContext, LowRank, Sparse, make_codec
from ders_core.codecs.coding.row_places import place_specs, read_places, stored_places
from ders_core.codecs.held_entries import HeldEntries
from ders_core.compute import kernels
from ders_core.files.dtype import Dtype

FORMS: list[dict[str, Any]] = [
    {"drop_rate": 0.9},
    {"drop_rate": 0.985, "rescale": "none"},
    {"drop_rate": 0.5, "method": "magnitude"},
    {"drop_rate": 0.99, "method": "magnitude", "positions": "fixed", "value_bits": 8},
    {"drop_rate": 0.8, "method": "della", "value_bits": 4, "budget": "row"},
    {"pattern": "2:4"},
    {"pattern": "1:16", "value_bits": 8},
    {"drop_rate": 0.4, "value_bits": 4},
    {"drop_rate": 0.9, "value_bits": 8, "draws": "matrix"},
]


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 600)), share=st.floats(0, 1), seed=st.just(3)
)
def test_places_come_back(shape: tuple[int, int], share: float, seed: int) -> None:
    """Of any density, in as many bytes as were promised."""
    random = torch.Generator().manual_seed(seed)
    places = (torch.rand(shape[0] * shape[1], generator=random) < share).nonzero().view(-1)
    parts = stored_places(places, shape)
    assert torch.equal(read_places(parts, shape, len(places)), places)
    for name, spec in place_specs(shape, len(places)).items():
        assert (tuple(parts[name].shape), parts[name].dtype) == (spec.shape, spec.dtype.torch)


class LargestMade(TorchDispatchMode):
    """How many bytes the largest tensor has that any operation makes."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.nbytes = max(self.nbytes, made.nbytes)
        return made


@pytest.mark.parametrize("count", [0, 1, 700, 30_000])
def test_places_are_read_on_a_device_in_little_memory(count: int) -> None:
    """The same ones, without waiting; nothing takes 8 bytes of each mark, which are more than
    entries."""
    shape = (60, 500)
    random = torch.Generator().manual_seed(3)
    places = torch.randperm(30_000, generator=random)[:count].sort().values
    parts = stored_places(places, shape)
    with counted_waits() as waits, LargestMade() as largest:
        there = {name: part.to(DEVICE) for name, part in parts.items()}
        far = read_places(there, shape, count)
        assert not waits, waits
    assert torch.equal(far.near, places)  # type: ignore[attr-defined]
    marks = 8 * parts["marks"].numel()
    assert largest.nbytes <= max(4 * marks, 8 * count)


@pytest.mark.parametrize("fields", FORMS, ids=lambda fields: Sparse(**fields).label)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("has_loops", [True, False])
def test_deltas_and_weights_are_the_codecs_own(
    fields: dict[str, Any], dtype: torch.dtype, has_loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, from compiled loops and from torch; and products are those of the deltas."""
    codec = Sparse(**fields)
    for shape in ((40, 64), (7, 464)):
        held, context = codec.held_form(shape), EncodeContext(dtype, 7)
        assert isinstance(held, HeldEntries)
        parts = codec.encode(gauss(shape, 1), context)
        base = gauss(shape, 2).to(dtype)
        delta, weight = codec.decode(parts, shape, context), codec.unpack(parts, base, context)
        own = codec.held_parts(parts, shape, context)
        for name, spec in held.parts(shape, Dtype.of(dtype)).items():
            assert (tuple(own[name].shape), own[name].dtype) == (spec.shape, spec.dtype.torch)
        with monkeypatch.context() as patch:
            if not has_loops:
                patch.setattr(kernels, "_installed", lambda: False)
            assert torch.equal(held.decode(own, shape, context), delta)
            assert torch.equal(held.unpack(own, base, context), weight)
            x = gauss((3, shape[1]), 4)
            product = held.product(own, x, shape, context)
        expected = x.double() @ delta.double().T
        assert float((product - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_what_does_not_fit_stays_as_it_is() -> None:
    """Blocks that reach beyond their row, and values whose scales come from afar."""
    block = Sparse(pattern="1:16")
    assert block.held_form((8, 100)) is block
    assert block.held_form((8, 96)) is not block
    shape = 1024, 1024
    for rate, draws, fits in (
        (0.8, "blocks", True),
        (0.4, "blocks", False),
        (0.8, "matrix", False),
    ):
        drawn = make_codec({"codec": "sparse", "drop_rate": rate, "value_bits": 8, "draws": draws})
        assert (drawn.held_form(shape) is not drawn) == fits


def test_stages_of_a_chain_are_held_each_in_its_form() -> None:
    chain = make_codec(
        {"codec": "chain", "stages": [{"codec": "lowrank", "rank": 2}, {"codec": "sparse", **DROP}]}
    )
    assert isinstance(chain, Chain)
    shape, context = (24, 64), EncodeContext(torch.float32, 5)
    held = chain.held_form(shape)
    assert isinstance(held, Chain)
    assert [type(stage) for stage in held.stages] == [LowRank, HeldEntries]
    parts = chain.encode(gauss(shape, 1), context)
    own = chain.held_parts(parts, shape, context)
    assert own.keys() == held.parts(shape, Dtype.F32).keys()
    assert torch.equal(held.decode(own, shape, context), chain.decode(parts, shape, context))


DROP = {"drop_rate": 0.9}


@pytest.mark.parametrize(("experts", "most"), [(4, 0.40), (8, 0.27)])
def test_a_tenth_of_the_entries_takes_few_bytes(experts: int, most: float) -> None:
    """Base and deltas in 16 bits, as a share of whole weights; at the shapes of Mixtral-8x7B."""
    for shape in ((14336, 4096), (4096, 14336)):
        parts = Sparse(**DROP).held_form(shape).parts(shape, Dtype.BF16)
        whole = 2 * shape[0] * shape[1]
        held = whole + experts * sum(spec.nbytes for spec in parts.values())
        assert held <= most * experts * whole
