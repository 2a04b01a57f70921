"""Large groups of which as many experts as fit are held: read once, the bytes as ever."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from support.compress_support import Snapshot
from support.counted_reads import counted_reads, times_read
from support.messages import raises_saying
from support.range_server import serving

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint import held as held_module
from ders_core.checkpoint.held import Holding, first_held
from ders_core.checkpoint.room import ROOM, Room, Turn
from ders_core.checkpoint.stacks import CACHED_SLAB_BYTES
from ders_core.checkpoint.streaming import SLAB_BYTES, SLABS
from ders_core.codecs import Codec, EncodeContext, Quantized
from ders_core.codecs.group import GroupCodec
from ders_core.compute.threads import threads_of_torch
from ders_core.decompose.base import Base
from ders_core.decompose.bases.mean import MeanBase
from ders_core.decompose.bases.median import MedianBase
from ders_core.errors import CheckpointError, CodecError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline import holding as holding_module
from ders_core.pipeline.compress import compress
from ders_core.pipeline.holding import holding_of
from ders_core.pipeline.next_base import NextBase
from ders_core.recipe import ClusteredBase, Recipe, Rule

T = TypeVar("T")
R = TypeVar("R")

CODEC = Quantized(bits=2)
EXPERTS = 4
WEIGHTS = 112 * 64
"""Of an expert."""


def recipe_of(base: Base) -> Recipe:
    return Recipe(name="x", rules=(Rule(codec=CODEC),), base=base)


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No group is small, and all memory of held experts is given back at the end."""
    monkeypatch.setattr(held_module, "HELD_BYTES", 0)
    yield
    assert ROOM._taken == 0


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    return counted_reads(monkeypatch)


def let_hold(monkeypatch: pytest.MonkeyPatch, count: int, base: Base) -> None:
    """Memory for so many experts of each group of `mixtral_dir`."""
    most = base.count(EXPERTS).most
    # as many slabs at any number of threads, so that as much is left, and all of these can work
    monkeypatch.setattr(holding_module, "available_threads", lambda: 8)
    monkeypatch.setattr(holding_module, "CACHED_SLAB_BYTES", 2 * CACHED_SLAB_BYTES)
    monkeypatch.setattr(holding_module, "SLAB_BYTES", 2 * SLAB_BYTES)
    slabs = 16 * CACHED_SLAB_BYTES if most is None else 2 * SLABS * SLAB_BYTES
    room = (count + (most or 1)) * 2 * WEIGHTS + slabs
    monkeypatch.setattr(holding_module, "MOST_BYTES", room)


def counted(holding: Holding | None) -> int:
    """How many experts are held."""
    return 0 if holding is None else holding.count


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("base", "passes"),
    [(MeanBase(), 1), (MedianBase(), 1), (ClusteredBase(clusters=2), 2)],
    ids=["mean", "median", "clusters"],
)
def test_what_is_held_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
    reads: Counter[int],
    snapshot: Snapshot,
    tmp_path: Path,
    mixtral_dir: Path,
    threads: int,
    base: Base,
    passes: int,
) -> None:
    """passes: how often a base is made of what is not held, before deltas are encoded."""
    groups = open_checkpoint(mixtral_dir).groups()
    written = []
    for held, count in ((4, 4), (3, 3), (2, 0)):  # half of them is not worth it
        let_hold(monkeypatch, held, base)
        reads.clear()
        with threads_of_torch(threads):
            compress(mixtral_dir, tmp_path / str(held), recipe_of(base))
        expected = [{1}] * count + [{1 + passes}] * (EXPERTS - count)
        assert [times_read(reads, group) for group in groups] == [expected] * len(groups)
        written.append(snapshot(tmp_path / str(held)))
    assert written[0] == written[1] == written[2]


def test_more_is_held_than_memory_allows_at_no_time(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, lend = [0], Room.lend

    def counted(self: Room, *arguments: object) -> torch.Tensor:
        memory: torch.Tensor = lend(self, *arguments)  # type: ignore[arg-type]
        most[0] = max(most[0], self._taken)
        return memory

    monkeypatch.setattr(Room, "lend", counted)
    for held in (4, 3):
        let_hold(monkeypatch, held, MeanBase())
        most[0] = 0
        with threads_of_torch(2):
            compress(mixtral_dir, tmp_path / str(held), recipe_of(MeanBase()))
        assert most[0] == held * 2 * WEIGHTS


def test_the_next_group_is_read_meanwhile(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the thread for what comes next, but for the first group; all of it before its base."""
    read: list[tuple[tuple[int, str], str]] = []

    def first(group: ExpertGroup, *rest: object) -> ExpertGroup:
        read.append((group.key, threading.current_thread().name.split("_")[0]))
        return first_held(group, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("ders_core.pipeline.encode.first_held", first)
    let_hold(monkeypatch, 4, MeanBase())
    with threads_of_torch(1):
        compress(mixtral_dir, tmp_path / "out", recipe_of(MeanBase()))
    groups = [group.key for group in open_checkpoint(mixtral_dir).groups()]
    assert sorted(key for key, _ in read) == sorted(groups)
    assert [name for _, name in read] == ["MainThread", *["compute"] * (len(groups) - 1)]


@pytest.mark.timeout(120)
def test_the_last_expert_leaves_room_to_read_the_rest(
    mixtral_dir: Path, tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is held of the next group is read before its turn comes, though only a part of it
    fits beside what all threads work on."""
    beside = 8 * CACHED_SLAB_BYTES  # of two threads as much as slabs take
    held, early = 3, dict[Turn, int]()
    all_there, lend, may_take = threading.Condition(), Room.lend, NextBase.may_take

    def lent(
        self: Room, shape: Sequence[int], dtype: torch.dtype, most: int, turn: Turn
    ) -> torch.Tensor:
        memory = lend(self, shape, dtype, most, turn)
        if not turn.has_come:
            with all_there:
                early[turn] = early.get(turn, 0) + 1
                all_there.notify_all()
        return memory

    def waits(self: NextBase, beyond: int) -> None:
        """The last expert is not asked for until the rest is read."""
        may_take(self, beyond)
        if beyond and self._begun is not None:
            turn = self._begun[2]
            with all_there:
                assert all_there.wait_for(lambda: early.get(turn) == held, 60)

    monkeypatch.setattr(Quantized, "beside_bytes", lambda *_: beside)
    let_hold(monkeypatch, held, MeanBase())
    with threads_of_torch(1):
        compress(mixtral_dir, tmp_path / "one", recipe_of(MeanBase()))
    early.clear()
    monkeypatch.setattr(Room, "lend", lent)
    monkeypatch.setattr(NextBase, "may_take", waits)
    with threads_of_torch(2):
        compress(mixtral_dir, tmp_path / "two", recipe_of(MeanBase()))
    groups = open_checkpoint(mixtral_dir).groups()
    assert list(early.values()) == [held] * (len(groups) - 1)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_tasks_that_do_not_follow_one_another_hold_nothing(
    mixtral_dir: Path, tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of several GPUs, whose codecs may run on the CPU: in threads, a task in each. The
    next group is read ahead as others are."""
    ahead = list[tuple[int, str]]()

    def in_threads(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(function, items)

    let_hold(monkeypatch, 4, MeanBase())
    recipe = recipe_of(MeanBase())
    compress(mixtral_dir, tmp_path / "alone", recipe)
    monkeypatch.setattr("ders_core.pipeline.encode.first_held", lambda *_: pytest.fail("held"))
    monkeypatch.setattr(ExpertGroup, "read_ahead", lambda self: ahead.append(self.key))
    with threads_of_torch(1):
        compress(mixtral_dir, tmp_path / "threads", recipe, runner=in_threads)
    assert snapshot(tmp_path / "threads") == snapshot(tmp_path / "alone")
    groups = [group.key for group in open_checkpoint(mixtral_dir).groups()]
    assert set(groups[1:]) <= set(ahead)


def test_what_comes_from_an_address_is_not_held(
    mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read it takes as much memory again."""
    let_hold(monkeypatch, 4, MeanBase())
    with serving(mixtral_dir) as server, threads_of_torch(1):
        near, far = (open_checkpoint(place).group(0, "up") for place in (mixtral_dir, server.url))
        for group, expected in ((near, 4), (far, 0)):
            codec = GroupCodec.same(CODEC, EXPERTS)
            assert counted(holding_of(group, recipe_of(MeanBase()), codec, "cpu")) == expected


def test_only_what_stays_in_memory_is_held(
    mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with one base as it is; and with no more than beside what a codec needs."""
    group = open_checkpoint(mixtral_dir).group(0, "gate")
    let_hold(monkeypatch, 4, MeanBase())

    def holding(codec: Codec, device: str = "cpu", **fields: object) -> int:
        recipe = Recipe.model_validate({"name": "x", "rules": [{"codec": codec}], **fields})
        with threads_of_torch(2):
            return counted(holding_of(group, recipe, GroupCodec.same(codec, EXPERTS), device))

    assert holding(CODEC) == 4
    for fields in ({"base": "auto"}, {"base": "none"}, {"base": {"dense": "anywhere"}}):
        assert not holding(CODEC, **fields)
    assert not holding(CODEC, "cuda")
    monkeypatch.setattr(holding_module, "CACHED_SLAB_BYTES", 0)  # larger than such small experts
    learnt = Quantized(bits=2, grid="learned")  # holds a delta in float32, and more
    # the base, two of the four experts, and what two threads need
    most = 3 * 2 * WEIGHTS + 2 * 8 * WEIGHTS
    monkeypatch.setattr(holding_module, "MOST_BYTES", most)
    assert holding(learnt) == 4
    assert not holding(CODEC)  # its pieces are larger too
    for shared, held in ((0, 4), (1, 0)):
        needed = 8 * WEIGHTS, shared
        with monkeypatch.context() as patch:
            patch.setattr(holding_module, "needed_beside", lambda *_, needed=needed: needed)
            assert holding(CODEC) == held
            assert not holding(CODEC, calibration="moments")  # six more threads help
            patch.setattr(holding_module, "available_threads", lambda: 2)
            assert holding(CODEC, calibration="moments") == held
    monkeypatch.setattr(holding_module, "MOST_BYTES", most - 1)
    assert not holding(learnt)


def test_a_file_that_changes_while_it_is_held_is_refused(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in mixtral_dir.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (weights,) = source.glob("*.safetensors")
    seen = list[int]()

    def first(group: ExpertGroup, *rest: object) -> ExpertGroup:
        seen.append(group.layer)
        found = first_held(group, *rest)  # type: ignore[arg-type]
        if len(seen) == 3:
            with open(weights, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x01")
        return found

    monkeypatch.setattr("ders_core.pipeline.encode.first_held", first)
    let_hold(monkeypatch, 4, MeanBase())
    with threads_of_torch(2), raises_saying(CheckpointError, weights.name):
        compress(source, tmp_path / "out", recipe_of(MeanBase()))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_ahead_is_told_in_its_turn(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(group: ExpertGroup, *rest: object) -> ExpertGroup:
        if group.layer == 1:
            raise CheckpointError(f"{group.title} in {threading.current_thread().name}")
        return first_held(group, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("ders_core.pipeline.encode.first_held", first)
    let_hold(monkeypatch, 4, MeanBase())
    with threads_of_torch(2), raises_saying(CheckpointError, "layer 1", "MainThread"):
        compress(mixtral_dir, tmp_path / "out", recipe_of(MeanBase()))


@pytest.mark.timeout(60)
def test_a_failure_leaves_nobody_waiting_for_room(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Codec, *arguments: object) -> EncodeContext:
        raise CodecError("fails")

    monkeypatch.setattr(Quantized, "pack", fails)
    let_hold(monkeypatch, 4, MeanBase())
    with threads_of_torch(2), pytest.raises(CodecError, match="fails"):
        compress(mixtral_dir, tmp_path / "out", recipe_of(MeanBase()))
    gc.collect()  # of what threads raised, a traceback knows the future that holds the error
    assert not [each for each in threading.enumerate() if each.name.startswith("compute")]
