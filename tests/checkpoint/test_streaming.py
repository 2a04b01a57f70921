"""Groups read piece by piece: the same values as at once, in order, in little memory."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from weakref import ref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.messages import raises_saying
from support.once_reads import noted_reads
from support.stored_groups import group_of

from ders_core.checkpoint import streaming
from ders_core.checkpoint.held import held
from ders_core.checkpoint.piece_buffers import PieceBuffer
from ders_core.checkpoint.side_by_side import _Free
from ders_core.checkpoint.streaming import (
    SLABS,
    each_matrix,
    each_slab,
    matrices,
    of_slabs,
    slabs,
)
from ders_core.compute import buffers
from ders_core.compute.threads import each_piece, one_thread, threads_of_torch
from ders_core.errors import CheckpointError
from ders_core.files.cold_reads import reading_once


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 7)),
    axes=st.sampled_from(["expert out in", "expert in out", "out expert in"]),
    slab=st.integers(1, 600),
)
def test_pieces_make_the_group(
    tmp_path: Path, shape: tuple[int, int, int], axes: str, slab: int
) -> None:
    weights = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    group = group_of(tmp_path / "a.safetensors", weights, axes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "SLAB_BYTES", slab)
        pieces = [(rows, piece.clone()) for rows, piece in slabs(group)]
    ends = [0, *(rows.stop for rows, _ in pieces)]
    assert [rows.start for rows, _ in pieces] == ends[:-1]
    assert ends[-1] == shape[1]
    row_bytes = shape[0] * shape[2] * 4
    assert all(piece.nbytes <= max(slab, row_bytes) for _, piece in pieces)
    assert np.array_equal(torch.cat([piece for _, piece in pieces], 1).numpy(), weights)
    numbered = [(expert, matrix.clone()) for expert, matrix in matrices(group)]
    assert [expert for expert, _ in numbered] == list(range(shape[0]))
    assert np.array_equal(torch.stack([matrix for _, matrix in numbered]).numpy(), weights)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 7)),
    axes=st.sampled_from(["expert out in", "expert in out", "out expert in"]),
    slab=st.integers(1, 600),
    threads=st.integers(1, 5),
)
def test_every_slab_is_used_once_by_any_number_of_threads(
    tmp_path: Path, shape: tuple[int, int, int], axes: str, slab: int, threads: int
) -> None:
    weights = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    group = group_of(tmp_path / "a.safetensors", weights, axes)
    seen = torch.zeros(shape)

    def use(rows: slice, values: torch.Tensor) -> None:
        before = values.clone()
        time.sleep(0.0001)
        assert torch.equal(values, before)
        seen[:, rows] += values + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "CACHED_SLAB_BYTES", slab)
        each_slab(group, use, threads)
    assert np.array_equal(seen.numpy(), weights + 1)


@pytest.mark.parametrize("threads", [1, 4])
def test_what_is_made_of_slabs_comes_in_their_order(tmp_path: Path, threads: int) -> None:
    weights = np.arange(2 * 30 * 3, dtype=np.float32).reshape(2, 30, 3)
    group = group_of(tmp_path / "a.safetensors", weights)
    parts = [slice(0, 7), slice(7, 8), slice(8, 20), slice(20, 22), slice(22, 30)]

    def use(rows: slice, values: torch.Tensor) -> tuple[slice, np.ndarray]:
        time.sleep(0.02 / (1 + rows.start))  # the first ones end last
        return rows, values.numpy().copy()

    made = list(of_slabs(group, parts, use, threads))
    assert [rows for rows, _ in made] == parts
    for rows, values in made:
        assert np.array_equal(values, weights[:, rows])
    assert not list(of_slabs(group, [], use, threads))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_read_past_the_cache_where_their_caller_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    group = group_of(tmp_path / "a.safetensors", np.zeros((2, 60, 4), np.float32))
    monkeypatch.setattr(streaming, "CACHED_SLAB_BYTES", 64)
    monkeypatch.setattr(streaming, "SLAB_BYTES", 64)
    seen = noted_reads(monkeypatch)
    for is_once in (True, False):
        seen.clear()
        with reading_once() if is_once else nullcontext():
            each_slab(group, lambda _, slab: None, threads)
            for _ in slabs(group):
                pass
        assert len(seen) == 120
        assert set(seen) == {is_once}


@pytest.mark.parametrize(("rows", "threads"), [(3, 7), (7, 3)])
def test_no_more_memory_is_borrowed_than_is_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, threads: int
) -> None:
    """Kept memory that one group leaves alone, the next one would touch."""
    group = group_of(tmp_path / "a.safetensors", np.zeros((2, rows, 4), np.float32))
    borrowed, borrow = list[tuple[int, ...]](), buffers.borrow

    def counted(shape: tuple[int, ...], dtype: torch.dtype) -> AbstractContextManager[torch.Tensor]:
        borrowed.append(shape)
        return borrow(shape, dtype)

    monkeypatch.setattr(streaming, "borrow", counted)
    monkeypatch.setattr(streaming, "CACHED_SLAB_BYTES", 1)  # a row at a time
    each_slab(group, lambda _, slab: None, threads)
    assert len(borrowed) == 3


def test_a_slab_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_of(tmp_path / "a.safetensors", np.zeros((2, 50, 4), np.float32))
    monkeypatch.setattr(streaming, "CACHED_SLAB_BYTES", 1)
    begun: list[int] = []

    def use(rows: slice, values: torch.Tensor) -> None:
        begun.append(rows.start)
        if rows.start == 5:
            raise ArithmeticError("the fifth")

    with pytest.raises(ArithmeticError, match="the fifth"):
        each_slab(group, use, 2)
    assert len(begun) < 20


def test_a_piece_is_valid_until_the_next_and_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ahead goes into other buffers; all pieces together use no more than `SLABS`."""
    weights = np.arange(3 * 64 * 5, dtype=np.float32).reshape(3, 64, 5)
    group = group_of(tmp_path / "a.safetensors", weights)
    monkeypatch.setattr(streaming, "SLAB_BYTES", 3 * 5 * 4 * 2)
    memory = set()
    for rows, piece in slabs(group):
        memory.add(piece.data_ptr())
        assert np.array_equal(piece.numpy(), weights[:, rows])
    assert len(memory) <= SLABS


def test_stopping_early_ends_the_reading_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = group_of(tmp_path / "a.safetensors", np.zeros((2, 50, 4), np.float32))
    monkeypatch.setattr(streaming, "SLAB_BYTES", 1)
    pieces = slabs(group)
    next(pieces)
    assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    pieces.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_experts_are_worked_on_side_by_side_in_order(tmp_path: Path, threads: int) -> None:
    """While one is worked on or shown, nothing is read over it, and no more than asked for are."""
    weights = np.arange(20 * 6 * 5, dtype=np.float32).reshape(20, 6, 5)
    group = group_of(tmp_path / "a.safetensors", weights)
    lock, busy, most, memory = threading.Lock(), 0, 0, set()
    hashed: list[float] = []

    def work(expert: int, weight: torch.Tensor) -> float:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
            memory.add(weight.data_ptr())
        before = weight.clone()
        time.sleep(0.001 * (expert % 4))
        assert torch.equal(weight, before)
        with lock:
            busy -= 1
        return float(weight.sum())

    def show(weight: torch.Tensor) -> None:
        time.sleep(0.002)
        hashed.append(float(weight[0, 0]))

    flow = each_matrix(group, work, threads, seen=show)
    assert list(flow) == [(k, float(weights[k].sum())) for k in range(20)]
    assert hashed == [float(weights[k, 0, 0]) for k in range(20)]
    assert most <= threads
    assert len(memory) <= threads + 1


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_that_have_no_expert_help(tmp_path: Path, threads: int) -> None:
    """Pieces of one expert that wait for each other, in three threads; memory is for fewer
    experts."""
    group = group_of(tmp_path / "a.safetensors", np.zeros((1, 6, 5), np.float32))
    together = threading.Barrier(3, timeout=20)

    def work(expert: int, weight: torch.Tensor) -> int:
        each_piece(lambda _: together.wait(), range(3))
        return expert

    with threads_of_torch(3), one_thread():
        assert list(each_matrix(group, work, threads)) == [(0, 0)]
    assert not any(thread.name.startswith("compute") for thread in threading.enumerate())


def test_experts_are_shown_while_they_are_worked_on(tmp_path: Path) -> None:
    group = group_of(tmp_path / "a.safetensors", np.zeros((9, 8, 4), np.float32))
    begun = [threading.Event() for _ in range(9)]
    in_time: list[bool] = []

    def show(weight: torch.Tensor) -> None:
        in_time.append(begun[len(in_time)].wait(60))

    list(each_matrix(group, lambda expert, weight: begun[expert].set(), 2, seen=show))
    assert in_time == [True] * 9


def test_what_fails_while_it_is_shown_is_raised(tmp_path: Path) -> None:
    group = group_of(tmp_path / "a.safetensors", np.zeros((9, 8, 4), np.float32))
    shown: list[int] = []

    def show(weight: torch.Tensor) -> None:
        shown.append(len(shown))
        if len(shown) == 4:
            raise ArithmeticError("the fourth")

    with pytest.raises(ArithmeticError, match="the fourth"):
        list(each_matrix(group, lambda expert, weight: None, 2, seen=show))


def test_memory_that_no_expert_needs_any_more_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last one is worked on, that of the others: of two threads and of one that reads."""
    monkeypatch.setattr(buffers, "_account", buffers._Account())
    monkeypatch.setattr(buffers, "_free", [])
    group = group_of(tmp_path / "a.safetensors", np.zeros((7, 8, 4), np.float32))
    nbytes, latest = 8 * 4 * 4, time.monotonic() + 30

    def work(expert: int, weight: torch.Tensor) -> int:
        while expert == 6 and buffers._account.in_use > nbytes and time.monotonic() < latest:
            time.sleep(0.001)
        return buffers._account.in_use

    in_use = [number for _, number in each_matrix(group, work, 2, seen=lambda weight: None)]
    assert max(in_use) <= 3 * nbytes  # borrowed as they are read into
    assert in_use[6] == nbytes
    assert buffers._account.in_use == 0


def test_memory_that_was_held_is_free_once_its_expert_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "_account", buffers._Account())
    monkeypatch.setattr(buffers, "_free", [])
    group = held(group_of(tmp_path / "a.safetensors", np.zeros((5, 8, 4), np.float32)))
    nbytes = 8 * 4 * 4
    in_use = [used for _, used in each_matrix(group, lambda *_: buffers._account.in_use)]
    assert in_use == [left * nbytes for left in (5, 4, 3, 2, 1)]


def test_a_buffer_that_is_free_keeps_no_piece_that_lies_elsewhere() -> None:
    with ExitStack() as memory:
        buffer = PieceBuffer((2,), torch.float32, torch.device("cpu"), memory)
        free, elsewhere = _Free([buffer], users=1, uses=2), [torch.zeros(2)]
        buffer.fill(lambda lend, expert: elsewhere[expert], 0)
        assert free.take() is buffer
        assert buffer.take() is elsewhere[0]
        piece = ref(elsewhere.pop())
        assert piece() is not None
        free.give_back(buffer)
        assert piece() is None


def test_an_expert_that_fails_ends_the_others(tmp_path: Path) -> None:
    """Nobody works on memory that was given back."""
    group = group_of(tmp_path / "a.safetensors", np.zeros((30, 8, 4), np.float32))
    busy: set[int] = set()

    def work(expert: int, weight: torch.Tensor) -> None:
        busy.add(expert)
        time.sleep(0.005)
        if expert == 5:
            raise ArithmeticError("the fifth")
        busy.discard(expert)

    with pytest.raises(ArithmeticError, match="the fifth"):
        list(each_matrix(group, work, 3))
    assert busy == {5}
    flow = each_matrix(group, work, 3)
    next(flow)
    flow.close()
    assert busy == {5}
    names = {thread.name.split("_")[0] for thread in threading.enumerate()}
    assert not names & {"read-ahead", "compute"}


def test_a_file_that_ends_too_early_is_told_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    group = group_of(path, np.ones((1, 40, 4), np.float32))
    monkeypatch.setattr(streaming, "SLAB_BYTES", 4 * 4 * 10)
    path.write_bytes(path.read_bytes()[:-8])
    read = []
    with raises_saying(CheckpointError, "a.safetensors", "'x'"):
        read += [rows.stop for rows, _ in slabs(group)]
    for threads in (1, 2):
        with raises_saying(CheckpointError, "a.safetensors", "'x'"):
            list(each_matrix(group, lambda expert, weight: None, threads))
