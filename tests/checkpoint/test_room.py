"""Room for held experts, and for what encoding needs beside them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from support.gate_experts import gates, write_experts

from ders_core.checkpoint.room import ROOM, NotWanted, Room, working_in
from ders_core.checkpoint.streaming import each_matrix

WAIT = 20.0
"""Seconds after which a test fails in place of waiting for ever."""


def test_who_waits_for_room_leaves_when_the_turn_is_over() -> None:
    room, left = Room(), list[str]()
    turn = room.at_once()

    def wait() -> None:
        with pytest.raises(NotWanted), working_in(turn), room.beside(2, 2):
            pass
        left.append("over")

    waiting = threading.Thread(target=wait)
    with room.beside(1, 2):
        waiting.start()
        waiting.join(0.05)
        assert not left
        turn.cancel()
        waiting.join(WAIT)
    assert left == ["over"]
    with room.beside(2, 2):  # of no turn
        assert room._beside == 2
    assert room._beside == 0


@pytest.mark.timeout(60)
def test_who_waits_for_room_when_another_fails_begins_nothing(tmp_path: Path) -> None:
    """But for one that may have room before the failure is known."""
    write_experts(tmp_path / "model", 8)
    inside, begun, asked = threading.Event(), list[int](), list[int]()

    def use(number: int, weight: torch.Tensor) -> None:
        asked.append(number)
        assert number == 0 or inside.wait(WAIT)
        with ROOM.beside(10, 10):
            begun.append(number)
            inside.set()
            while len(asked) < 4:
                time.sleep(0.001)
            time.sleep(0.2)  # the others wait, or the end is known
            if number == 0:
                raise ValueError("the first one")

    with pytest.raises(ValueError, match="the first one"):
        list(each_matrix(gates(tmp_path / "model"), use, 4))
    assert begun[0] == 0
    assert len(begun) <= 2
    assert ROOM._beside == 0


def test_memory_that_is_not_there_is_not_lent() -> None:
    room = Room()
    with pytest.raises(MemoryError):
        room.lend((1 << 60,), torch.uint8, 0, room.at_once())
    assert room._taken == 0


@pytest.mark.timeout(60)
def test_a_matrix_waits_for_room_until_its_turn_comes() -> None:
    room, shape, nbytes = Room(), (3, 5), 30
    ahead, lent = room.ahead(), list[torch.Tensor]()
    first = room.lend(shape, torch.bfloat16, 0, room.at_once())
    assert (first.shape, first.dtype, room._taken) == (shape, torch.bfloat16, nbytes)

    def lend() -> None:
        lent.append(room.lend(shape, torch.bfloat16, 2 * nbytes - 1, ahead))

    waiting = threading.Thread(target=lend)
    waiting.start()
    waiting.join(0.05)
    assert not lent
    view = first[1:]
    del first
    waiting.join(0.05)
    assert not lent  # a view shares the memory
    del view
    waiting.join()
    assert len(lent) == 1
    waiting = threading.Thread(target=lend)
    waiting.start()
    ahead.may_take(0)
    waiting.join(0.05)
    assert len(lent) == 1
    ahead.may_take(1)
    waiting.join()
    assert len(lent) == 2
    waiting = threading.Thread(target=lend)
    waiting.start()
    ahead.come()
    waiting.join()
    assert room._taken == 3 * nbytes
    lent.clear()
    assert room._taken == 0
