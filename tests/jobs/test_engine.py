"""Tasks on this machine's threads and GPUs, and on a cluster that somebody runs."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying

from ders_core.compute.threads import available_threads, one_thread
from ders_core.errors import JobError, RecipeError
from ders_core.jobs import Engine


def square(number: int) -> tuple[int, int]:
    return number * number, threading.get_ident()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise RecipeError("the third one is wrong", line=7)
    return number


def threads(_: int) -> int:
    return torch.get_num_threads()


def note(path: Path) -> Path:
    path.touch()
    time.sleep(0.02)
    return path


# This machine


def test_tasks_run_here_one_after_another() -> None:
    here = threading.get_ident()
    for engine in (Engine(), Engine(workers=3), Engine(workers=1, device="cuda")):
        with engine:
            assert list(engine.run(square, [])) == []
            assert list(engine.run(square, [3, 1, 2])) == [(9, here), (1, here), (4, here)]


def test_workers_are_threads_of_this_process() -> None:
    before = torch.get_num_threads()
    with Engine(workers=3) as engine:
        assert list(engine.run(threads, range(2))) == [3, 3]
        with one_thread():
            assert (torch.get_num_threads(), available_threads()) == (1, 3)
    with Engine() as engine:
        assert list(engine.run(threads, range(1))) == [before]
    assert torch.get_num_threads() == available_threads() == before


def test_a_task_begins_when_its_result_is_asked_for(tmp_path: Path) -> None:
    with Engine(workers=2) as engine:
        results = engine.run(note, [tmp_path / str(number) for number in range(5)])
        next(results)
        assert [path.name for path in tmp_path.iterdir()] == ["0"]


@pytest.mark.parametrize("engine", [Engine(workers=2), Engine(device="cuda")])
def test_an_error_comes_back_as_itself(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ders_core.jobs.engine.gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    with engine, pytest.raises(RecipeError, match="the third one") as caught:
        list(engine.run(fail_at_three, range(6)))
    assert caught.value.line == 7


def test_each_gpu_has_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there are GPUs or not, that is what each thread is told."""
    of_thread: dict[int, int] = {}

    def choose(number: int) -> None:
        of_thread[threading.get_ident()] = number

    def work(number: int) -> tuple[int, int]:
        time.sleep(0.02)
        return number, of_thread[threading.get_ident()]

    monkeypatch.setattr("ders_core.jobs.engine.gpus", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    for workers, used in ((None, {0, 1, 2}), (2, {0, 1}), (9, {0, 1, 2})):
        of_thread.clear()
        with Engine(workers, device="cuda") as engine:
            results = list(engine.run(work, range(12)))
        assert sorted(number for number, _ in results) == list(range(12))
        assert {gpu for _, gpu in results} == used == set(of_thread.values())


def test_no_more_tasks_than_gpus_are_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.jobs.engine.gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    with Engine(device="cuda") as engine:
        results = engine.run(note, [tmp_path / str(number) for number in range(60)])
        with closing(results):  # type: ignore[type-var]
            next(results)
        assert len(list(tmp_path.iterdir())) <= 3


def test_workers_are_at_least_one() -> None:
    with raises_saying(JobError, "0 workers", "at least 1"):
        Engine(workers=0)


# A cluster


@contextmanager
def cluster(**options: Any) -> Iterator[str]:
    """The address of a dask cluster of one worker with one thread."""
    from distributed import LocalCluster

    usual = {"n_workers": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(threads_per_worker=1, **usual | options) as started:
        yield started.scheduler_address


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster in this process that offers a GPU; tasks travel over its ports all the same."""
    with cluster(processes=False, protocol="tcp", resources={"GPU": 1}) as started:
        yield started


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_given_scheduler_is_used(device: str, address: str) -> None:
    with Engine(scheduler=address, device=device) as engine:
        results = list(engine.run(square, [2, 3]))
        assert list(engine.run(threads, [1])) == [1]
    assert sorted(value for value, _ in results) == [4, 9]
    assert threading.get_ident() not in {thread for _, thread in results}


def test_an_error_of_a_cluster_comes_back_as_itself(address: str) -> None:
    with (
        Engine(scheduler=address) as engine,
        pytest.raises(RecipeError, match="the third one") as caught,
    ):
        list(engine.run(fail_at_three, range(6)))
    assert caught.value.line == 7
    assert pickle.loads(pickle.dumps(caught.value)).line == 7


def test_few_tasks_are_under_way_on_a_cluster(address: str, tmp_path: Path) -> None:
    with Engine(scheduler=address) as engine:
        results = engine.run(note, [tmp_path / str(number) for number in range(60)])
        next(results)
        time.sleep(0.3)
        assert len(list(tmp_path.iterdir())) < 10
        results.close()  # type: ignore[attr-defined]
        assert next(iter(engine.run(square, [5, 5])))[0] == 25


def test_work_for_gpus_is_refused_where_no_worker_has_one() -> None:
    with (
        cluster(processes=False, protocol="tcp") as started,
        Engine(scheduler=started, device="cuda") as engine,
        raises_saying(JobError, started, "GPU", "dask worker", "cpu"),
    ):
        list(engine.run(square, [1, 2]))


class Ended:
    """A future that ended otherwise than with a result or an error of its task."""

    def __init__(self, status: str, error: Exception) -> None:
        self.status, self._error = status, error

    def result(self) -> None:
        raise self._error


def test_the_end_of_a_clusters_processes_is_a_sentence() -> None:
    """The cluster's own words for it are told as ours; how soon it notices is not ours."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    from ders_core.jobs.cluster import Cluster

    far = Cluster(None, "tcp://10.0.0.5:8786", "cpu")
    with raises_saying(JobError, "process", "again and again", "tcp://10.0.0.5:8786"):
        far._result(Ended("error", KilledWorker("task", None, 3)))
    for status in ("cancelled", "lost"):
        with raises_saying(JobError, "tcp://10.0.0.5:8786", "lost", "resume"):
            far._result(Ended(status, CancelledError()))
    with pytest.raises(RecipeError, match="wrong"):
        far._result(Ended("error", RecipeError("wrong")))


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ders_core.jobs.cluster.CONNECT_SECONDS", 1)
    address = "tcp://127.0.0.1:9"
    with Engine(scheduler=address) as engine, raises_saying(JobError, address, "dask scheduler"):
        list(engine.run(square, [1]))
