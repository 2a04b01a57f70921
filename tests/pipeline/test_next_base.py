"""The base of the next group is made while the last matrices of the one before are encoded."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.compress_support import Snapshot
from support.messages import raises_saying

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.room import ROOM, NotWanted, Turn
from ders_core.codecs import Keep, Quantized
from ders_core.compute.threads import available_threads, threads_of_torch
from ders_core.decompose.base import BaseContext
from ders_core.decompose.bases.mean import MeanBase
from ders_core.decompose.decomposition import Decomposition
from ders_core.errors import CheckpointError
from ders_core.pipeline.compress import compress
from ders_core.pipeline.next_base import NextBase
from ders_core.recipe import Recipe, Rule

RECIPE = Recipe(name="x", rules=(Rule(codec=Quantized(bits=3)),))
Decompose = Callable[[MeanBase, ExpertGroup, BaseContext], Iterator[tuple[str, Decomposition]]]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, str], str]]:
    """(group, name of the thread) of each base that was made."""
    made: list[tuple[tuple[int, str], str]] = []
    plain: Decompose = MeanBase.decompositions

    def decompositions(
        self: MeanBase, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        made.append((group.key, threading.current_thread().name.split("_")[0]))
        return plain(self, group, context)

    monkeypatch.setattr(MeanBase, "decompositions", decompositions)
    return made


def test_each_base_is_made_once_and_bytes_are_the_same(
    mixtral_dir: Path,
    tmp_path: Path,
    begun: list[tuple[tuple[int, str], str]],
    snapshot: Snapshot,
) -> None:
    """With one thread in its turn, else in the background but for the first."""
    with threads_of_torch(1):
        compress(mixtral_dir, tmp_path / "one", RECIPE)
    alone, begun[:] = list(begun), []
    assert {name for _, name in alone} == {"MainThread"}
    with threads_of_torch(3):
        compress(mixtral_dir, tmp_path / "three", RECIPE)
    assert [group for group, _ in begun] == [group for group, _ in alone]
    assert [name for _, name in begun] == ["MainThread", *["compute"] * (len(alone) - 1)]
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "three")
    assert not [each for each in threading.enumerate() if each.name.startswith("compute")]


def test_what_is_kept_needs_no_base(
    mixtral_dir: Path, tmp_path: Path, begun: list[tuple[tuple[int, str], str]]
) -> None:
    kept = Rule(codec=Keep(), projections=("down",))
    with threads_of_torch(2):
        compress(mixtral_dir, tmp_path / "out", Recipe(name="x", rules=(*RECIPE.rules, kept)))
    assert begun
    assert all(projection != "down" for (_, projection), _ in begun)


def test_what_fails_beforehand_is_told_in_its_turn(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Decompose = MeanBase.decompositions

    def fails(
        self: MeanBase, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        if group.layer == 1:
            raise CheckpointError(f"{group.title} in {threading.current_thread().name}")
        return plain(self, group, context)

    monkeypatch.setattr(MeanBase, "decompositions", fails)
    with threads_of_torch(2), raises_saying(CheckpointError, "layer 1", "MainThread"):
        compress(mixtral_dir, tmp_path / "out", RECIPE)


def test_another_group_does_not_get_it() -> None:
    tried, following = [("mean", None)], NextBase()
    following.begin("a", lambda: iter(tried), 1)  # type: ignore[arg-type]
    assert following.take("b") is None
    assert following.take("a") is None
    following.begin("a", lambda: iter(tried * 2), 1)  # type: ignore[arg-type]
    found = following.take("a")
    assert found is not None
    assert len(list(found)) == 2
    following.end()


def test_work_is_shared_out_as_in_the_thread_that_asked() -> None:
    following, seen = NextBase(), []

    def make() -> Iterator[tuple[str, Decomposition]]:
        seen.append(
            (available_threads(), torch.get_num_threads(), torch.is_inference_mode_enabled())
        )
        raise AssertionError

    with torch.inference_mode():
        following.begin("a", make, 5)
        with pytest.raises(AssertionError):
            following.take("a")
    following.end()
    assert seen == [(5, 1, True)]


def test_what_failed_ahead_keeps_no_memory() -> None:
    """Without the collector: the group is read again at once."""

    def fails(turn: Turn) -> Iterator[tuple[str, Decomposition]]:
        memory = ROOM.lend((2, 2), torch.float32, 0, ROOM.at_once())
        raise CheckpointError(f"{memory.shape} are not read")

    following = NextBase()
    gc.disable()
    try:
        following.read("a group", fails)
        assert following.take("a group") is None
        following.end()  # the thread has left what it ran
        assert ROOM._taken == 0
    finally:
        gc.enable()


@pytest.mark.timeout(60)
def test_what_is_not_wanted_is_not_read() -> None:
    following, begun = NextBase(), threading.Event()
    full = ROOM.lend((2, 2), torch.float32, 0, ROOM.at_once())
    ended = list[type[BaseException]]()

    def read(turn: object) -> Iterator[tuple[str, object]]:
        begun.set()
        try:
            ROOM.lend((2, 2), torch.float32, 0, turn)  # type: ignore[arg-type]
        except NotWanted as error:
            ended.append(type(error))
            raise
        raise AssertionError

    for leave in (lambda: following.take("another"), following.end):
        begun.clear()
        following.read("a group", read)  # type: ignore[arg-type]
        begun.wait()
        leave()
    assert ended == [NotWanted] * 2
    del full
    assert ROOM._taken == 0
