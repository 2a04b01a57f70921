"""Training checkpoints: each appears whole or not at all, and the newest whole one is found.

The `Trainer` writes the files of a checkpoint one after another. It does so in a folder that nobody
reads; when the disk has all of them, the folder gets its name. Disks fail and people edit, so a
checkpoint is also read before a training goes on from it: nothing in it is executed, and every byte
is the one that the checkpoint's seal tells of.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer_pt_utils import safe_globals

from ders_core.errors import CheckpointError, OutputError
from ders_core.files.aside import sync_directory, sync_tree
from ders_core.files.header import read_header
from ders_core.files.json_object import read_json
from ders_core.files.writer import write_json
from ders_core.units import visible

TRAINED = "trained.safetensors"
"""File of a training checkpoint: trained parameters and positions; the rest is the dense model."""

STATE = "trainer_state.json"
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
KEYS: Mapping[str, tuple[str, ...]] = {
    OPTIMIZER: ("state", "param_groups"),
    SCHEDULER: ("last_epoch",),
}
"""What the `Trainer` reads of its pickles; it ignores that one is missing."""

RANDOM = re.compile(r"rng_state(_\d+)?\.pth")
RANDOM_KEYS = ("python", "numpy", "cpu")

SEAL = "sealed.json"
"""File that tells the SHA-256 of every other one of a checkpoint."""

NAME = re.compile(r"checkpoint-(\d+)")
ASIDE = ".writing"
"""The folder in which a checkpoint is written, and in which an old one is removed."""

PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class Damaged:
    """A checkpoint from which no training can go on. reason: which file, and why."""

    path: Path
    reason: str

    @property
    def step(self) -> int:
        return _step(self.path)


@dataclass(frozen=True)
class Checkpoints:
    """What is in a folder of training checkpoints. newest: the newest whole one. damaged: those
    that are newer."""

    newest: Path | None = None
    damaged: tuple[Damaged, ...] = ()

    @property
    def step(self) -> int:
        """The last step that need not be trained again; 0 without a whole checkpoint."""
        return 0 if self.newest is None else _step(self.newest)

    @property
    def sentence(self) -> str:
        """Where a training goes on, and why not later."""
        if self.newest is None:
            where = "the training begins at its first step: no training checkpoint is whole"
            if not self.damaged:
                return f"{where} yet"
        else:
            where = f"the training goes on from the checkpoint of step {self.step}"
        removed = "; ".join(f"step {each.step}: {each.reason}" for each in self.damaged)
        return f"{where}; removed, because damaged: {removed}" if removed else where


def find_checkpoints(folder: Path) -> Checkpoints:
    """Read a folder's checkpoints, the newest first, until one is whole. Changes nothing. Raises
    OutputError if the folder cannot be listed."""
    damaged: list[Damaged] = []
    for path in reversed(_named(folder)):
        reason = problem(path)
        if reason is None:
            return Checkpoints(path, tuple(damaged))
        damaged.append(Damaged(path, reason))
    return Checkpoints(None, tuple(damaged))


def clear(folder: Path, found: Checkpoints) -> None:
    """Remove the damaged checkpoints, and what a process that died was writing. Raises
    OutputError."""
    for path in (folder / ASIDE, *(each.path for each in found.damaged)):
        try:
            _remove(path)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be removed: {error.strerror}; remove it, then run again"
            ) from error


def problem(path: Path) -> str | None:
    """Which file of a checkpoint is missing or damaged; None if it is whole."""
    try:
        random = sorted(name for name in os.listdir(path) if RANDOM.fullmatch(name))
    except OSError as error:
        return f"it cannot be listed ({error.strerror})"
    for name in (TRAINED, STATE, OPTIMIZER, SCHEDULER, *(random or ["rng_state.pth"]), SEAL):
        file = path / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if not file.stat().st_size:
                return f"{name} is empty"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        reason = _content_problem(file)
        if reason is not None:
            return reason
    return None


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yield the folder in which the block writes the files of a checkpoint, once `begin` made it.

    Raises OutputError for whatever keeps it from being written; then nothing of it is left, which
    also gives a full disk its room back.
    """
    try:
        yield folder / ASIDE
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _cause(folder, error)
        shutil.rmtree(folder / ASIDE, ignore_errors=True)
        raise OutputError(
            f"{folder} cannot take a training checkpoint: {cause}; mend that, then go on from the "
            "last one with --resume"
        ) from error


def begin(folder: Path) -> None:
    """Make the folder for the next checkpoint, empty. Raises OutputError."""
    with writing(folder) as aside:
        _remove(aside)
        aside.mkdir()


def publish(folder: Path, step: int, keep: int) -> None:
    """Give the checkpoint of a step, which is written, its name, and keep the `keep` newest ones.
    Raises OutputError."""
    with writing(folder) as aside:
        name = f"checkpoint-{step}"
        write_json(aside / name / SEAL, _digests(aside / name))
        sync_tree(aside / name)
        if not (folder / name).exists():  # else of this step too, and whole
            os.rename(aside / name, folder / name)
        sync_directory(folder)
        for path in _named(folder)[:-keep]:
            os.rename(path, aside / path.name)  # so that no part of it is taken for a checkpoint
        _remove(aside)


def _content_problem(file: Path) -> str | None:
    """Why a file that is there cannot be read to its end."""
    try:
        if file.name == TRAINED:
            read_header(file)
        elif file.name == STATE:
            if read_json(file).get("global_step") != _step(file.parent):
                return f"{file.name} is of another step"
        elif file.name == SEAL:
            return _seal_problem(file)
        else:
            return _pickle_problem(file)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    return None


def _digests(path: Path) -> dict[str, str]:
    """The hex SHA-256 of each file of a checkpoint but its seal, by name. Raises OSError."""
    digests = {}
    for file in sorted(path.iterdir()):
        if file.name != SEAL:
            with open(file, "rb") as opened:
                digests[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return digests


def _seal_problem(seal: Path) -> str | None:
    """Which file is not the one that was written. Raises CheckpointError, OSError."""
    told, digests = read_json(seal), _digests(seal.parent)
    changed = [name for name in sorted(digests) if told.get(name) != digests[name]]
    if not changed and told.keys() == digests.keys():
        return None
    # a name that only the seal has may be anything; it is damaged, or its file is gone
    return f"{visible(changed[0]) if changed else SEAL} is not as it was written"


def _pickle_problem(file: Path) -> str | None:
    """Why a pickle of tensors cannot be read; it is read as values, never executed."""
    keys = KEYS.get(file.name, RANDOM_KEYS)
    try:
        with zipfile.ZipFile(file) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            return f"{file.name} is damaged at {wrong}"
        with safe_globals():
            state: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged archive or pickle can raise anything
        return f"{file.name} is damaged ({type(error).__name__})"
    if not isinstance(state, dict) or not all(key in state for key in keys):
        return f"{file.name} holds no state of a training"
    return None


def _cause(folder: Path, error: Exception) -> str:
    """The system's reason: libraries tell of it in words of their own, or not at all."""
    if not folder.is_dir():
        return f"{folder.parent} was removed while it was written"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    told = re.search(r"\(os error (\d+)\)", str(error))
    if told is not None:
        return os.strerror(int(told[1]))
    probe = folder / ".probe"
    try:
        with open(probe, "wb") as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as found:
        return found.strerror or os.strerror(found.errno or errno.EIO)
    finally:
        probe.unlink(missing_ok=True)
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _named(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first. Raises OutputError."""
    try:
        paths = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(paths, key=_step)


def _step(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _remove(path: Path) -> None:
    """Remove a folder, if it is there. Raises OSError if it stays."""
    if path.exists():
        shutil.rmtree(path)
