"""Trainings that die while they write a training checkpoint, and checkpoints that are damaged: a
resumed training goes on from the newest whole one and says so, to the same bytes."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from support.messages import raises_saying
from support.shell import ders
from support.small_disks import small_disk
from support.upcycle_support import RENEWED, assert_same, config_of, save_gpt2_with_dropout

from ders_core.errors import Cancelled, OutputError
from ders_core.upcycle import UpcycleConfig, checkpoints
from ders_core.upcycle.checkpoints import (
    ASIDE,
    SEAL,
    TRAINED,
    begin,
    find_checkpoints,
    problem,
    writing,
)
from ders_core.upcycle.history import read_history
from ders_core.upcycle.upcycler import CHECKPOINTS, UpcycleResult, upcycle

STEPS = 4
FILES = (TRAINED, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", SEAL)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save_gpt2_with_dropout(tmp_path_factory.mktemp("gpt2") / "dense", tokenizer)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> UpcycleConfig:
    """Four steps, with a checkpoint after the second and the last."""
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(tiny_text, encoding="utf-8")
    return config_of(file, RENEWED, training={"steps": STEPS})


@pytest.fixture(scope="module")
def straight(dense: Path, config: UpcycleConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the training comes to if nothing happens."""
    out = tmp_path_factory.mktemp("straight") / "out"
    upcycle(dense, out, config, device="cpu")
    return out


@pytest.fixture(scope="module")
def stopped(dense: Path, config: UpcycleConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out.partial` of a training that was stopped after its third step: with checkpoints of the
    second and the third."""
    folder = tmp_path_factory.mktemp("stopped")

    def stop(done: int, total: int, message: str) -> None:
        if message.startswith("step 3"):
            raise Cancelled("asked to stop")

    with pytest.raises(Cancelled):
        upcycle(dense, folder / "out", config, device="cpu", progress=stop)
    names = sorted(path.name for path in (folder / "out.partial" / CHECKPOINTS).iterdir())
    assert names == ["checkpoint-2", "checkpoint-3"]
    return folder / "out.partial"


Resume = Callable[..., UpcycleResult]


@pytest.fixture
def resume(dense: Path, config: UpcycleConfig, straight: Path, tmp_path: Path) -> Resume:
    """resume(partial): go on from a copy of an unfinished output; asserts the same bytes."""

    def go_on(partial: Path, config: UpcycleConfig = config) -> UpcycleResult:
        out = tmp_path / f"resumed{len(list(tmp_path.iterdir()))}"
        shutil.copytree(partial, f"{out}.partial")
        result = upcycle(dense, out, config, device="cpu", resume=True)
        assert_same(straight, out)
        assert list(read_history(out).steps["step"]) == list(range(1, STEPS + 1))
        assert not (out / CHECKPOINTS).exists()
        return result

    return go_on


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def holed(file: Path) -> None:
    """Zeros where bytes were, as after a crash of the machine."""
    middle = file.stat().st_size // 2
    with open(file, "r+b") as opened:
        opened.seek(middle)
        opened.write(bytes(min(64, middle)))


def flipped(file: Path) -> None:
    """One bit of the last value, which every reader takes for another value."""
    content = bytearray(file.read_bytes())
    content[len(content) * 9 // 10] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"cut": cut, "empty": empty, "missing": Path.unlink}


@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_no_checkpoint(name: str, stopped: Path, tmp_path: Path) -> None:
    """Every file, and however much of it is there."""
    whole = stopped / CHECKPOINTS / "checkpoint-3"
    assert problem(whole) is None
    for damage, do in DAMAGES.items():
        copy = Path(shutil.copytree(whole, tmp_path / damage / whole.name))
        do(copy / name)
        assert name in (problem(copy) or ""), damage
        found = find_checkpoints(copy.parent)
        assert (found.newest, [each.step for each in found.damaged]) == (None, [3])
    for size in range(0, (whole / name).stat().st_size, (whole / name).stat().st_size // 7):
        os.truncate(shutil.copy(whole / name, copy / name), size)
        assert name in (problem(copy) or ""), size
    for do in (holed, flipped):
        shutil.copy(whole / name, copy / name)
        do(copy / name)
        reason = problem(copy) or ""
        assert reason
        assert name in reason or name == SEAL, do  # which tells of a file that it is not as it was


def test_if_none_is_whole_the_training_begins_again(
    stopped: Path, dense: Path, config: UpcycleConfig, resume: Resume, tmp_path: Path
) -> None:
    partial = Path(shutil.copytree(stopped, tmp_path / "damaged"))
    empty(partial / CHECKPOINTS / "checkpoint-3" / TRAINED)
    shutil.rmtree(partial / CHECKPOINTS / "checkpoint-2")
    (partial / CHECKPOINTS / "checkpoint-2").mkdir()
    said = resume(partial).resumed
    for fact in ("first step", "step 2", "step 3", TRAINED):
        assert fact in said


def test_an_older_whole_checkpoint_is_taken_and_the_command_says_so(
    stopped: Path, dense: Path, config: UpcycleConfig, straight: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "out.partial")
    empty(tmp_path / "out.partial" / CHECKPOINTS / "checkpoint-3" / "optimizer.pt")
    (tmp_path / "u.yaml").write_text(config.to_yaml(), encoding="utf-8")
    done = ders("upcycle", dense, tmp_path / "out", "--config", tmp_path / "u.yaml", "--resume")
    assert done.returncode == 0, done.stderr
    for fact in ("step 2", "step 3", "optimizer.pt is empty"):
        assert fact in done.stdout
    assert_same(straight, tmp_path / "out")


class Harm:
    """A pickle that makes a file when it is executed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_code_in_a_checkpoint_runs(name: str, stopped: Path, tmp_path: Path) -> None:
    checkpoint = Path(
        shutil.copytree(stopped / CHECKPOINTS / "checkpoint-3", tmp_path / "c" / "checkpoint-3")
    )
    torch.save({"state": Harm(tmp_path / "ran"), "param_groups": []}, checkpoint / name)
    assert name in (problem(checkpoint) or "")
    (checkpoint / name).write_bytes(pickle.dumps(Harm(tmp_path / "ran")))
    assert name in (problem(checkpoint) or "")
    assert not (tmp_path / "ran").exists()


def test_wherever_the_process_dies_a_training_goes_on(
    dense: Path,
    config: UpcycleConfig,
    resume: Resume,
    tmp_path: Path,
    rounds: Callable[[int, int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy of what a kill leaves on the disk is taken before and after everything that writes,
    renames or removes a part of a checkpoint, and halfway through every file; of each a checkpoint
    is whole or is not there, and the training goes on from some of them to the same bytes."""
    training = config.training.model_copy(update={"keep": 1})  # so that old ones are removed
    removing = config.model_copy(update={"training": training})
    out, kills = tmp_path / "out", tmp_path / "kills"
    partial = tmp_path / "out.partial"
    kills.mkdir()

    def kill() -> None:
        shutil.copytree(partial, kills / f"{len(os.listdir(kills)):03d}")

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            inside = (partial / CHECKPOINTS).is_dir()
            if inside:
                kill()
            result = function(*values, **named)
            last = Path(str(values[-1]))
            if inside and last.is_file() and last.suffix in (".pt", ".pth", ".safetensors"):
                kept = last.read_bytes()
                cut(last)
                kill()
                last.write_bytes(kept)
            return result

        return call

    monkeypatch.setattr(torch, "save", watched(torch.save))
    monkeypatch.setattr("ders_core.upcycle.whole_trainer.save_file", watched(save_file))
    for name in ("sync_tree", "sync_directory", "_remove"):
        monkeypatch.setattr(checkpoints, name, watched(getattr(checkpoints, name)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", watched(os.rename))
        upcycle(dense, out, removing, device="cpu")
    monkeypatch.undo()
    places = sorted(kills.iterdir())
    assert len(places) > 25
    steps = []
    for place in places:
        found = find_checkpoints(place / CHECKPOINTS)
        assert found.damaged == ()
        steps.append(found.step)
    assert steps == sorted(steps)
    assert set(steps) == {0, 2, 4}
    chances = random.Random(19)
    for place in chances.sample(places, min(rounds(1, len(places)), len(places))):
        resume(place, removing)


def test_a_killed_process(
    dense: Path,
    config: UpcycleConfig,
    straight: Path,
    tmp_path: Path,
    rounds: Callable[[int, int], int],
) -> None:
    """A real one, by SIGKILL, while it writes any of its pickles."""
    if not rounds(0, 1):
        pytest.skip("the copies that the test above takes are what a kill leaves")
    (tmp_path / "u.yaml").write_text(config.to_yaml(), encoding="utf-8")
    script = (
        "import os, signal, sys, torch\n"
        "from ders_core.cli.main import main\n"
        "left, save = [int(sys.argv.pop())], torch.save\n"
        "def dying(value, file, *rest, **more):\n"
        "    save(value, file, *rest, **more)\n"
        "    left[0] -= 1\n"
        "    if not left[0]:\n"
        "        os.truncate(file, os.path.getsize(file) // 2)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.save = dying\n"
        "main()\n"
    )
    for number in range(1, 1 + rounds(0, 6)):
        out = tmp_path / f"out{number}"
        words = ["upcycle", dense, out, "--config", tmp_path / "u.yaml", "--device", "cpu"]
        command = [sys.executable, "-c", script, *map(str, words), str(number)]
        died = subprocess.run(command, capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert (out.with_name(f"{out.name}.partial") / CHECKPOINTS / ASIDE).is_dir()
        done = ders(*words, "--resume")
        assert done.returncode == 0, done.stderr
        assert ("first step" if number < 4 else "step 2") in done.stdout
        assert_same(straight, out)


def full(*values: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAILURES = {
    "system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
    "torch": RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 22\n."
    ),
}
"""A full disk in the words of whoever was writing: torch names neither the disk nor the reason."""


@pytest.mark.parametrize("writer", FAILURES)
def test_a_full_disk_is_one_sentence(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    reason = os.strerror(errno.ENOSPC)
    with raises_saying(OutputError, tmp_path, reason, "--resume"), writing(tmp_path) as aside:
        (aside / "optimizer.pt").write_bytes(b"PK")
        raise FAILURES[writer]
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_it_trains(
    dense: Path,
    config: UpcycleConfig,
    stopped: Path,
    tmp_path: Path,
    rounds: Callable[[int, int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real disk that was large enough when the work began: one sentence; whole checkpoints are
    there to go on from, nothing half written."""
    monkeypatch.setattr("ders_core.upcycle.upcycler.check_room", lambda directory, needs: None)
    monkeypatch.setattr("ders_core.files.output.check_room", lambda directory, needs: None)
    checkpoint = stopped / CHECKPOINTS / "checkpoint-3"
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    with small_disk(tmp_path / "disk") as disk:
        if not disk.mounted:
            pytest.skip("no disk of its own can be mounted here")
        for number in range(1, 1 + rounds(1, 40)):
            out = disk.place / f"out{number}"
            share = 1.5 if number == 1 else number / 20  # of two checkpoints, the first fits
            with disk.room(int(size * share)), raises_saying(OutputError, out):
                upcycle(dense, out, config, device="cpu")
            partial = out.with_name(f"{out.name}.partial")
            found = find_checkpoints(partial / CHECKPOINTS)
            assert not out.exists()
            assert not found.damaged
            if number == 1:
                assert [path.name for path in (partial / CHECKPOINTS).iterdir()] == ["checkpoint-2"]
            shutil.rmtree(partial, ignore_errors=True)


@pytest.mark.parametrize("gone", ["out.partial", "."])
def test_a_place_that_vanishes_while_it_trains(
    gone: str,
    dense: Path,
    config: UpcycleConfig,
    tmp_path: Path,
    rounds: Callable[[int, int], int],
) -> None:
    if gone == "." and not rounds(0, 1):
        pytest.skip("in the long form")
    place = tmp_path / "place"

    def vanish(done: int, total: int, message: str) -> None:
        if message.startswith("step 1"):
            shutil.rmtree(place / gone)

    with raises_saying(OutputError, place):
        upcycle(dense, place / "out", config, device="cpu", progress=vanish)
    assert not (place / "out").exists()


def test_room_is_looked_at_before_the_training(
    dense: Path, config: UpcycleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the checkpoints and the result take: here more than there is."""
    told: list[str] = []
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 50_000, 50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with raises_saying(OutputError, tmp_path, "free"):
        upcycle(dense, tmp_path / "out", config, progress=lambda *step: told.append(step[2]))
    assert not [message for message in told if "loading" in message]
    assert not list(tmp_path.iterdir())
