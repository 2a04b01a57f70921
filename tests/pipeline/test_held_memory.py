"""What held groups take, and when it goes back: as little as was said, at any number of threads."""

from __future__ import annotations

import gc
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from support.codec_support import gauss
from support.compress_support import Snapshot
from support.counted_reads import read_sizes

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint import held as held_module
from ders_core.checkpoint.held import Holding, first_held
from ders_core.checkpoint.room import ROOM, Room, Turn
from ders_core.checkpoint.side_by_side import UNUSED
from ders_core.checkpoint.stacks import CACHED_SLAB_BYTES
from ders_core.checkpoint.streaming import CACHED_SLABS
from ders_core.codecs import Codec, Quantized, Sparse, make_codec
from ders_core.compute import buffers
from ders_core.compute.threads import threads_of_torch
from ders_core.errors import CodecError
from ders_core.files import cold_reads
from ders_core.files.writer import write_tensors
from ders_core.pipeline import holding as holding_module
from ders_core.pipeline.compress import compress
from ders_core.pipeline.judge import probe_in_turn, probe_sums
from ders_core.recipe import Recipe, Rule

SHAPE = 1024, 2048
EXPERTS = 4
MATRIX = 2 * SHAPE[0] * SHAPE[1]
CODECS = (
    {"codec": "quantized", "bits": 1},
    {"codec": "quantized", "bits": 8},
    {"codec": "sparse", "drop_rate": 0.9},
    {"codec": "entropy", "bits": 1, "rounding": "unbiased"},
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of experts of 4 MiB, whose memory is large enough to be counted."""
    place = tmp_path_factory.mktemp("held") / "model"
    place.mkdir()
    tensors = dict[str, torch.Tensor]()
    for part, shape in (("w1", SHAPE), ("w3", SHAPE), ("w2", SHAPE[::-1])):
        common = gauss(shape, 1)
        for expert in range(EXPERTS):
            name = f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight"
            tensors[name] = (common + 0.1 * gauss(shape, 7 + expert)).bfloat16()
    write_tensors(place / "model.safetensors", tensors)
    config = f'{{"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": {EXPERTS}}}'
    (place / "config.json").write_text(config)
    return place


def recipe_of(codec: Codec) -> Recipe:
    return Recipe(name="x", rules=(Rule(codec=codec),))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No group is small."""
    monkeypatch.setattr(held_module, "HELD_BYTES", 0)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("fields", CODECS, ids=str)
def test_all_experts_are_held_in_the_memory_that_was_said(
    fields: dict[str, object],
    threads: int,
    large: None,
    checkpoint: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole pieces are counted, small ones are not; the bytes are those of groups not held."""
    codec = make_codec(fields)
    recipe, beside = recipe_of(codec), codec.beside_bytes(SHAPE)
    with threads_of_torch(threads):
        monkeypatch.setattr(holding_module, "MOST_BYTES", 0)
        compress(checkpoint, tmp_path / "read", recipe)
        slabs = min(threads, CACHED_SLABS) * CACHED_SLAB_BYTES
        whole = (EXPERTS + 1) * MATRIX + max(beside, slabs)
        most = max(whole, 2 * MATRIX + (threads + UNUSED) * beside)  # so that one is read ahead
        monkeypatch.setattr(holding_module, "MOST_BYTES", most)
        read, before = read_sizes(monkeypatch, 1 << 16), buffers._account.in_use
        monkeypatch.setattr(buffers, "_free", [])  # what is kept may be larger than what is asked
        with buffers.memory_is_reused():
            compress(checkpoint, tmp_path / "held", recipe)
            assert buffers._account.most - before <= most
        assert ROOM._taken == ROOM._beside == 0
    assert sum(read) == 3 * EXPERTS * MATRIX
    assert snapshot(tmp_path / "held") == snapshot(tmp_path / "read")


def test_what_is_not_held_is_read_through_the_cache_the_first_time(
    large: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However quick the disk is. Three of four experts are held, and read past the cache; so would
    be the fourth the second time, as nothing is in the cache here."""
    codec, past = make_codec(CODECS[0]), list[int]()

    def read_past(path: Path, begin: int, memory: np.ndarray) -> int:
        past.append(len(memory))
        return 0

    monkeypatch.setattr(cold_reads, "_paces", defaultdict(cold_reads._Pace))  # no disk is slow
    monkeypatch.setattr(cold_reads, "_held", lambda file, begin, count: np.zeros(count, bool))
    monkeypatch.setattr(cold_reads, "_read_past_cache", read_past)
    room = max(codec.beside_bytes(SHAPE), CACHED_SLAB_BYTES)
    monkeypatch.setattr(holding_module, "MOST_BYTES", 4 * MATRIX + room)
    with threads_of_torch(1):
        compress(checkpoint, tmp_path / "held", recipe_of(codec))
    assert sum(past) == 3 * EXPERTS * MATRIX


def test_a_group_is_read_ahead_into_what_the_group_before_it_leaves(
    large: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may need more beside its experts than the next one does."""
    ahead, read = {"gate": 3, "up": 2, "down": 4}, list[tuple[str, int]]()

    def told(group: ExpertGroup, *rest: object) -> Holding:
        return Holding(EXPERTS, ahead[group.projection] * MATRIX, 0, 1 << 40)

    def first(group: ExpertGroup, holding: Holding, turn: Turn) -> ExpertGroup:
        read.append((group.projection, holding.ahead // MATRIX))
        return first_held(group, holding, turn)

    monkeypatch.setattr("ders_core.pipeline.encode.holding_of", told)
    monkeypatch.setattr("ders_core.pipeline.encode.first_held", first)
    with threads_of_torch(1):
        compress(checkpoint, tmp_path / "out", recipe_of(make_codec(CODECS[0])))
    assert read == [("gate", 3), ("up", 2), ("down", 2)]


MIXTRAL = 14336, 4096


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize(
    "codec",
    [
        *(Quantized(bits=bits) for bits in range(1, 9)),
        Quantized(grid="ternary"),
        Quantized(bits=4, grid="affine", scale_bits=8),
        Sparse(drop_rate=0.9),
    ],
    ids=str,
)
def test_all_experts_of_mixtral_are_held(codec: Codec, threads: int) -> None:
    """Eight of 117 MB, and a base; with what is needed beside one, and a slab."""
    matrix = 2 * MIXTRAL[0] * MIXTRAL[1]
    room = holding_module.MOST_BYTES - 9 * matrix
    slabs = min(threads, CACHED_SLABS) * CACHED_SLAB_BYTES
    for shape in (MIXTRAL, MIXTRAL[::-1]):
        assert max(codec.beside_bytes(shape), slabs) <= room


@pytest.mark.timeout(60)
def test_work_waits_for_room_but_one_piece_of_it() -> None:
    room, begun, over = Room(), threading.Event(), threading.Event()
    matrix = room.lend((10,), torch.uint8, 0, room.at_once())

    def work() -> None:
        with room.beside(10, 25):
            begun.set()
            over.wait()

    with room.beside(100, 25):  # nobody else is at work
        other = threading.Thread(target=work)
        other.start()
        assert not begun.wait(0.05)
    assert begun.wait(5)
    another = threading.Event()

    def more() -> None:
        with room.beside(10, 25):
            another.set()

    third = threading.Thread(target=more)
    third.start()
    assert not another.wait(0.05)
    del matrix  # 10 + 10 of 25, now there is room
    assert another.wait(5)
    over.set()
    for thread in (other, third):
        thread.join()
    assert room._beside == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_keeps_no_memory(
    threads: int,
    large: None,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While somebody has the error, and without the collector."""
    packed = Quantized.pack

    def fails(self: Quantized, weight: torch.Tensor, base: torch.Tensor, context: object) -> object:
        parts = packed(self, weight, base, context)  # type: ignore[arg-type]
        raise CodecError(f"{len(parts)} parts")

    monkeypatch.setattr(Quantized, "pack", fails)
    gc.collect()
    before = buffers._account.in_use
    gc.disable()
    try:
        with threads_of_torch(threads), pytest.raises(CodecError, match="2 parts") as raised:
            compress(checkpoint, tmp_path / "out", recipe_of(Quantized(bits=2)))
        assert raised.value.__traceback__ is not None
        assert ROOM._taken == 0
        assert buffers._account.in_use == before
    finally:
        gc.enable()


@pytest.mark.parametrize("width", [37, 64, 300])
@pytest.mark.parametrize("first", [0, 40, 37])
def test_rows_are_probed_in_turn_as_all_at_once(width: int, first: int) -> None:
    """The same bits, though a few are decoded at a time."""
    weight, base, unrounded = (gauss((1040, width), seed).bfloat16() for seed in (1, 2, 3))
    delta, rows = 0.01 * gauss((1040, width), 4), slice(first, first + 1000)
    synthesized = (base.float() + delta).bfloat16()
    expected = probe_sums(synthesized[rows], unrounded[rows], delta[rows], weight[rows])
    for at_once in (1, 20_000, 1 << 20):
        parts = list[int]()

        def decode(part: slice) -> torch.Tensor:
            parts.append(part.stop - part.start)  # noqa: B023
            return delta[part]

        found = probe_in_turn(decode, at_once, rows, weight, base, unrounded)
        assert found.tolist() == expected.tolist()
        assert sum(parts) == 1000
    assert len(parts) == 1
