from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying

from ders_core.errors import JobError, RecipeError
from ders_core.jobs import Engine
from ders_core.jobs.engine import ALLOWED_DEATHS, CONFIG

START_METHOD = "distributed.worker.multiprocessing-method"


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def nap(number: int) -> tuple[int, int]:
    time.sleep(0.15)
    return number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise RecipeError("the third one is wrong", line=7)
    return number


def threads(_: int) -> int:
    import torch

    return torch.get_num_threads()


def note(path: Path) -> Path:
    path.touch()
    time.sleep(0.05)
    return path


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Of two processes that start as a user's do."""
    with Engine(workers=2) as shared:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CONFIG, START_METHOD, "spawn")
            assert len(set(shared.run(threads, range(2)))) == 1
        yield shared


def test_one_worker_is_this_process() -> None:
    with Engine(workers=1) as alone:
        assert list(alone.run(square, [1, 2, 3])) == [(n * n, os.getpid()) for n in (1, 2, 3)]
    with Engine(workers=1, device="cuda") as gpu:
        assert list(gpu.run(square, [2, 3])) == [(4, os.getpid()), (9, os.getpid())]
    with Engine() as idle:
        assert list(idle.run(square, [])) == []
        assert list(idle.run(square, [3])) == [(9, os.getpid())]


@pytest.fixture
def empty_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be left behind, neither in the place for temporary files nor in the current
    folder."""
    here, temporary = tmp_path / "here", tmp_path / "tmp"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert not list(temporary.iterdir())
    assert not list(here.iterdir())


@pytest.mark.usefixtures("spawned", "empty_folders")
def test_processes_are_started_for_work_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ders_core.jobs.engine.cores", lambda: 2)
    with Engine() as short:
        assert {pid for _, pid in short.run(square, range(9))} == {os.getpid()}
    monkeypatch.setattr("ders_core.jobs.engine.ALONE_SECONDS", 0.2)
    with Engine() as long:
        results = list(long.run(nap, range(9)))
        assert [pid for _, pid in results[:2]] == [os.getpid()] * 2
        assert os.getpid() not in {pid for _, pid in results[2:]}
        assert sorted(number for number, _ in results) == list(range(9))
        assert os.getpid() not in {pid for _, pid in long.run(square, range(3))}  # they are there


def test_processes_share_the_work(engine: Engine) -> None:
    results = list(engine.run(nap, range(8)))
    assert sorted(number for number, _ in results) == list(range(8))
    assert len({pid for _, pid in results}) == 2
    assert os.getpid() not in {pid for _, pid in results}
    assert set(engine.run(threads, range(4))) == {1}


def test_no_other_user_of_the_machine_can_give_work(engine: Engine) -> None:
    """With a key of their own, or with none."""
    from distributed import Client
    from distributed.security import Security

    list(engine.run(square, [2, 3]))
    address = engine._client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    port = address.rpartition(":")[2]
    for other, security in ((f"tcp://127.0.0.1:{port}", None), (address, Security.temporary())):
        with pytest.raises((OSError, TimeoutError)):
            Client(other, security=security, timeout=2, set_as_default=False)


def test_an_error_comes_back_as_itself(engine: Engine) -> None:
    with pytest.raises(RecipeError, match="the third one") as caught:
        list(engine.run(fail_at_three, range(6)))
    assert caught.value.line == 7


def test_few_tasks_are_under_way_at_once(engine: Engine, tmp_path: Path) -> None:
    results = engine.run(note, [tmp_path / str(number) for number in range(60)])
    next(results)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) < 10
    results.close()  # type: ignore[attr-defined]
    assert next(iter(engine.run(square, [5, 5])))[0] == 25


def test_a_killed_process_costs_only_its_task(engine: Engine) -> None:
    results: list[int] = []
    for number, pid in engine.run(nap, range(14)):
        if not results:
            os.kill(pid, signal.SIGKILL)
        results.append(number)
    assert sorted(results) == list(range(14))


def sees(_: int) -> tuple[str | None, int]:
    time.sleep(0.1)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


@pytest.mark.usefixtures("spawned")  # with the variables that are set here
def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there are GPUs or not, that is what each process is told."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("ders_core.jobs.engine.gpus", lambda: 2)
    with Engine(device="cuda") as engine:
        results = set(engine.run(sees, range(6)))
    assert {seen for seen, _ in results} == {"0", "1"}
    assert len(results) == 2  # the same one for each process, all the time
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    with Engine(workers=2, device="cuda") as engine:
        assert {seen for seen, _ in engine.run(sees, range(6))} == {"3", "GPU-5a"}


PLACE: dict[str, Any] = {
    "host": "127.0.0.1",
    "dashboard_address": "127.0.0.1:0",
    "threads_per_worker": 1,
}


def test_work_for_gpus_is_refused_where_no_worker_has_one() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=1, processes=False, protocol="tcp", **PLACE) as cluster,
        Engine(scheduler=cluster.scheduler_address, device="cuda") as engine,
        raises_saying(JobError, cluster.scheduler_address, "GPU", "dask worker", "cpu"),
    ):
        list(engine.run(square, [1, 2]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_given_scheduler_is_used(device: str, given_scheduler: str) -> None:
    with Engine(scheduler=given_scheduler, device=device) as engine:
        results = list(engine.run(square, [2, 3]))
    assert sorted(value for value, _ in results) == [4, 9]
    assert os.getpid() not in {pid for _, pid in results}


@pytest.fixture(scope="module")
def given_scheduler() -> Iterator[str]:
    """The address of a cluster of one process that offers a GPU."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, resources={"GPU": 1}, **PLACE) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_a_task_that_kills_its_process_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIG, "distributed.scheduler.allowed-failures", 0)
    times = f" {ALLOWED_DEATHS + 1} times"
    with (
        Engine(workers=2) as engine,
        raises_saying(JobError, "process", times, "SIGKILL", "memory"),
    ):
        list(engine.run(die, range(2)))


@pytest.mark.slow
def test_processes_that_end_late_do_not_hide_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIG, "distributed.scheduler.allowed-failures", 0)
    monkeypatch.setattr("ders_core.jobs.local_cluster.CLOSE_SECONDS", 0.001)
    with Engine(workers=2) as engine, raises_saying(JobError, "process", "memory"):
        list(engine.run(die, range(2)))


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ders_core.jobs.engine.CONNECT_SECONDS", 1)
    address = "tcp://127.0.0.1:9"
    with Engine(scheduler=address) as engine, raises_saying(JobError, address, "dask scheduler"):
        list(engine.run(square, [1]))
    with raises_saying(JobError, "0 workers", "at least 1"):
        Engine(workers=0)
