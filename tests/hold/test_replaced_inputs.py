"""An input that another file takes the place of while a command reads it: every command that makes
a result of it refuses, and there is no output. A mixture of two versions looks like any result."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.messages import raises_saying
from support.repair_support import write_texts
from support.shell import ders, error_of

from ders_core.analysis import analyze
from ders_core.codecs import Lossless, Quantized
from ders_core.compute.progress import Meter
from ders_core.errors import CheckpointError
from ders_core.files.cache import _opened
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.worker import run_worker
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import DenseBase, Recipe, Rule

T = TypeVar("T")
R = TypeVar("R")

LOSSLESS = Recipe(name="all bits", rules=(Rule(codec=Lossless()),))
WEIGHTS = "model.safetensors"

UPCYCLE = """
name: {name}
{more}
forms: [{{form: lowrank, rank: 1}}]
data: {{texts: {text}, heldout: {heldout}, window: 32}}
training: {{steps: 1, batch: 2, warmup: 0, heldout_tokens: 64}}
"""


@pytest.fixture(scope="module")
def room(
    mixtral_dir: Path,
    dense_parent_dir: Path,
    tiny_text: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """One of every input. The attacks leave each file with the bytes that it has."""
    room = tmp_path_factory.mktemp("room")
    shutil.copytree(mixtral_dir, room / "moe")
    shutil.copytree(dense_parent_dir, room / "dense")
    for name in ("text.txt", "heldout.txt"):
        (room / name).write_text(tiny_text, encoding="utf-8")
    run(room, "calibrate moe -o calibration.safetensors --text text.txt --max-tokens 64")
    recipe = Recipe(
        name="all",
        calibration=room / "calibration.safetensors",
        base=DenseBase(dense=room / "dense"),
        rules=(Rule(codec=Quantized(bits=2)),),
    )
    (room / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    sampled = recipe.model_copy(update={"base": Recipe(name="x").base})
    (room / "sampled.yaml").write_text(sampled.to_yaml(), encoding="utf-8")
    for name, more in (("first", "experts: 2"), ("second", "")):
        texts = {"text": room / "text.txt", "heldout": room / "heldout.txt"}
        config = UPCYCLE.format(name=name, more=more, **texts)
        (room / f"{name}.yaml").write_text(config, encoding="utf-8")
    run(room, "compress moe packed --recipe recipe.yaml --workers 1")
    run(room, "export packed patch --format patch --base dense")
    run(room, "apply dense patch applied")
    return room


def run(room: Path, line: str) -> None:
    done = ders(*line.split(), cwd=room)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def replace_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], list[str]]:
    """replace_at(file, message): as soon as the work tells of `message`, another file with the same
    bytes takes the file's place, once; returns the messages at which that happened."""

    def begin(file: Path, message: str) -> list[str]:
        replaced: list[str] = []
        report = Meter.report

        def interfere(meter: Meter, told: str) -> None:
            if message in told and not replaced:
                replaced.append(told)
                shutil.copyfile(file, tmp_path / "aside")
                os.replace(tmp_path / "aside", file)
            report(meter, told)

        monkeypatch.setattr(Meter, "report", interfere)
        return replaced

    return begin


COMMANDS = {
    "compress": "compress moe OUT --recipe recipe.yaml --workers 1",
    "plan": "plan moe --recipe sampled.yaml --predict",
    "analyze": "analyze moe -o OUT.json",
    "verify": "verify packed --against moe",
    "synthesize": "synthesize packed OUT",
    "packed": "export packed OUT",
    "original": "export packed OUT --format original",
    "patch": "export packed OUT --format patch --base dense",
    "apply": "apply dense patch OUT",
    "rollback": "rollback applied OUT",
    "eval": "eval packed --reference moe --text text.txt --max-tokens 64",
    "ask": "ask packed River --reference moe --max-tokens 8 --device cpu",
    "calibrate": "calibrate moe -o OUT --text text.txt --max-tokens 64",
    "upcycle": "upcycle dense OUT --config first.yaml",
    "continue": "upcycle upcycled OUT --config second.yaml --continue",
    "repair": "repair plain -o OUT --original moe --text words/train.txt --heldout"
    " words/heldout.txt --steps 4 --batch 4 --window 32 --rate 0.005 --device cpu",
}

ATTACKS = [
    ("compress", "moe/model.safetensors", "writing"),
    ("compress", "moe/tokenizer.json", "encoded"),
    ("compress", "calibration.safetensors", "encoded"),
    ("compress", "dense/model.safetensors", "writing"),
    ("plan", "moe/model.safetensors", ""),
    ("analyze", "moe/model.safetensors", "layer 1, down"),
    ("verify", "packed/model.safetensors", "compared"),
    ("verify", "moe/model.safetensors", "compared"),
    ("synthesize", "packed/ders_manifest.json", "writing"),
    ("packed", "packed/tokenizer_config.json", "reading back"),
    ("original", "packed/model.safetensors", "reading back"),
    ("patch", "dense/model.safetensors", "writing"),
    ("apply", "dense/model.safetensors", "writing"),
    ("apply", "patch/patch.safetensors", "writing"),
    ("rollback", "applied/model.safetensors", "writing"),
    ("eval", "packed/model.safetensors", "measuring the compressed"),
    ("eval", "text.txt", "loading the original"),
    ("calibrate", "moe/model.safetensors", "calibrating"),
    ("upcycle", "heldout.txt", "step 1"),
    ("upcycle", "dense/model.safetensors", "measuring what"),
    ("repair", "plain/model.safetensors", "step 2"),
]
LONG_ATTACKS = [
    ("compress", "moe/model.safetensors", ""),
    ("compress", "moe/config.json", "encoded"),
    ("plan", "calibration.safetensors", ""),
    ("synthesize", "packed/model.safetensors", "writing"),
    ("packed", "packed/model.safetensors", "reading back"),
    ("patch", "packed/model.safetensors", "writing"),
    ("eval", "moe/model.safetensors", "the original"),
    ("eval", "moe/tokenizer.json", "the original"),
    ("eval", "packed/tokenizer.json", "measuring the compressed"),
    ("ask", "packed/model.safetensors", "the original replies"),
    ("ask", "moe/tokenizer.json", "the compressed model reads"),
    ("calibrate", "text.txt", "calibrating"),
    ("upcycle", "dense/model.safetensors", "texts"),
    ("continue", "upcycled/model.safetensors", "step 1"),
    ("repair", "words/heldout.txt", "reading the packed"),
    ("repair", "moe/model.safetensors", "measuring the repaired"),
    ("repair", "plain/ders_manifest.json", "writing"),
    ("repair", "moe/tokenizer.json", "measuring the packed"),
]


@pytest.mark.parametrize(("command", "name", "message"), [*ATTACKS, *LONG_ATTACKS])
def test_a_replaced_input_is_refused(
    command: str,
    name: str,
    message: str,
    room: Path,
    tmp_path: Path,
    replace_at: Callable[[Path, str], list[str]],
    rounds: Callable[[int, int], int],
) -> None:
    if (command, name, message) in LONG_ATTACKS and not rounds(0, 1):
        pytest.skip("in the long form")
    if command == "continue":
        run(room, "upcycle dense upcycled --config first.yaml")
    if command == "repair" and not (room / "words").exists():
        (room / "words").mkdir()
        write_texts(room / "words", (room / "text.txt").read_text(encoding="utf-8"))
        run(room, "compress moe plain --recipe quantized-2bit --workers 1")
    file, out = room / name, tmp_path / "out"
    replaced = replace_at(file, message)
    words = COMMANDS[command].replace("OUT", str(out)).split()
    done = ders(*words, cwd=room)
    assert replaced
    assert done.returncode == 1, done.stdout
    assert name in error_of(done)
    assert "written" in error_of(done)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".partial")]


@pytest.fixture
def two(mixtral_dir: Path, tmp_path: Path) -> Path:
    """`now`, a checkpoint, and `other.safetensors`: other values of the same names and shapes."""
    shutil.copytree(mixtral_dir, tmp_path / "now")
    tensors = load_file(tmp_path / "now" / WEIGHTS)
    torch.manual_seed(5)
    other = {name: tensor + torch.randn_like(tensor) for name, tensor in tensors.items()}
    save_file(other, tmp_path / "other.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_no_instant_gives_a_mixture(two: Path, rounds: Callable[[int, int], int]) -> None:
    """At whatever message other good weights come, there is no result of both."""
    told: list[str] = []
    compress(
        two / "now", two / "all", LOSSLESS, progress=lambda done, total, text: told.append(text)
    )
    chances = random.Random(19)
    for number in range(rounds(1, 100)):
        instant = chances.randrange(len(told))
        left = [instant]

        def interfere(done: int, total: int, text: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                shutil.copyfile(two / "other.safetensors", two / "aside")
                os.replace(two / "aside", two / "now" / WEIGHTS)

        out = two / f"out{number}"
        with raises_saying(CheckpointError, two / "now" / WEIGHTS, "written"):
            compress(two / "now", out, LOSSLESS, progress=interfere)
        assert left[0] < 0, instant
        assert not out.exists()


def elsewhere(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    """Each task as another process does it: without what this one has opened."""
    for item in items:
        _opened.cache_clear()
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(function, item).result()
    _opened.cache_clear()


def test_tasks_read_the_version_that_was_opened_first(two: Path) -> None:
    """Other weights are there for one task alone; at the end, everything is as it was."""
    weights = two / "now" / WEIGHTS

    def swapping(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
        for number, item in enumerate(items):
            if number == 2:
                os.rename(weights, two / "away")
                shutil.copyfile(two / "other.safetensors", weights)
            try:
                yield from elsewhere(function, [item])
            finally:
                if number == 2:
                    os.replace(two / "away", weights)

    verbs: list[Callable[[Any], object]] = [
        lambda runner: compress(two / "now", two / "out", LOSSLESS, runner=runner),
        lambda runner: analyze(open_checkpoint(two / "now"), spectra="none", runner=runner),
    ]
    for verb in verbs:
        with raises_saying(CheckpointError, weights, "written"):
            verb(swapping)
    assert not (two / "out").exists()
    for verb in verbs[1:]:
        verb(elsewhere)


def test_a_job_refuses_too(
    room: Path,
    tmp_path: Path,
    replace_at: Callable[[Path, str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DERS_ROOTS", str(room))
    workspace = Workspace(tmp_path / "workspace")
    store = JobStore(workspace.store_path)
    spec = {"checkpoint": str(room / "moe"), "spectra": "none", "device": "cpu"}
    number = store.submit("analyze", spec, "a").id
    replaced = replace_at(room / "moe" / WEIGHTS, "layer 1, down")
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert replaced
    assert job.state == "failed"
    assert str(room / "moe" / WEIGHTS) in (job.error or "")
    assert not workspace.analysis_dir(open_checkpoint(room / "moe").identity).exists()
