"""SIGKILL at any instant: inputs keep their bytes, an output is whole or absent, and the same work,
asked for again, makes the bytes that undisturbed work makes and leaves nothing else.

The short form kills each command and job before a few of its changes to the disk, drawn with a
seed; the long form before each one, and at random times besides. Groups are encoded by threads.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.fatal_changes import Ended, run
from support.gradient_calibrations import with_gradients
from support.repair_support import write_texts

from ders_core.cli.main import main
from ders_core.codecs import Codec, LowRank, Quantized
from ders_core.files.content import CACHE_VARIABLE
from ders_core.files.scratch import sweep_scratch
from ders_core.jobs.store import JobStore
from ders_core.jobs.worker import run_worker
from ders_core.jobs.workspace import ROOTS_VARIABLE, Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.packed.patch import apply_patch
from ders_core.pipeline import own_files
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.recipe import Recipe, Rule
from ders_core.repair.settings import RepairSettings
from ders_core.tune import scoring
from ders_core.tune.candidates import codecs_for

Rounds = Callable[[int, int], int]
Contents = dict[str, bytes]

SEED = 11
EVERY = 10_000
"""More kills than any command has changes."""

OWN_BYTES = 20_000
"""From here on, a staged group becomes a weight file. The model's groups take fewer and more."""

MEASURED = ("ders_upcycle.jsonl", "ders_upcycle.json")
"""Files that tell of the seconds and the memory that a training took."""

RECIPE = Recipe(
    name="two",
    rules=(Rule(codec=Quantized(bits=2)), Rule(codec=LowRank(rank=2), projections=("up",))),
)
WHOLE = """
name: whole
base_codec: [{codec: entropy, bits: 3}, {codec: quantized, bits: 4, projections: down}]
rules: [{codec: quantized, bits: 2}, {codec: lossless, projections: up}]
others: [{codec: entropy, bits: 4}, {codec: quantized, bits: 4, kinds: attention}]
"""
"""Of bases and other tensors too, some of which are staged until their lengths are known."""

OTHER = Recipe(name="other", rules=(Rule(codec=Quantized(bits=4)),))

UPCYCLE = """
name: tiny
experts: 2
data: {{texts: [{text}], window: 16}}
training: {{steps: 3, batch: 1, save_every: 1, warmup: 1}}
"""

TRAINING = (
    "--text TRAIN --heldout HELD --steps 4 --batch 4 --window 32 --rate 0.005 --heldout-tokens 310"
)

COMMANDS = {
    "compress": "compress MODEL OUT --recipe RECIPE --workers 3 --device cpu",
    "compress-whole": "compress MODEL OUT --recipe WHOLE --workers 3 --device cpu",
    "plan-settle": "plan MODEL --recipe BUDGET --settle OUT.yaml",
    "synthesize": "synthesize PACKED OUT",
    "synthesize-whole": "synthesize CODED OUT",
    "export": "export PACKED OUT",
    "export-original": "export PACKED OUT --format original",
    "export-patch": "export PACKED OUT --format patch --base OTHER",
    "apply": "apply OTHER PATCH OUT",
    "rollback": "rollback APPLIED OUT",
    "analyze-json": "analyze MODEL -o OUT.json --device cpu",
    "analyze-html": "analyze MODEL -o OUT.html --device cpu",
    "analyze-parquet": "analyze MODEL -o OUT.parquet --device cpu",
    "calibrate": "calibrate MODEL -o OUT.safetensors --text TEXT --max-tokens 64 --window 16",
    "upcycle": "upcycle DENSE OUT --config CONFIG --device cpu",
    "repair": f"repair PACKED --original MODEL -o OUT {TRAINING} --device cpu",
    "repair-whole": f"repair CODED --original MODEL -o OUT {TRAINING} --device cpu",
    "tune": "tune MODEL --budget 60% --calibration GRADIENTS -o OUT.yaml --device cpu",
    "prove": "prove MODEL --budget 60% --calibration GRADIENTS --text HELD --trials OUT.trials "
    "--max-tokens 64 -o OUT.yaml --device cpu",
    "pilot": "pilot MODEL --text TRAIN --heldout HELD --work OUT.pilot --prompt Mill --tokens 64 "
    "--max-tokens 64 -o OUT.html --device cpu",
}

JOBS: dict[str, dict[str, Any]] = {
    "run": {"checkpoint": "MODEL", "recipe": RECIPE.to_yaml(), "workers": 3, "device": "cpu"},
    "evaluate": {"model": "PACKED", "reference": "MODEL", "text": "TEXT", "max_tokens": 64},
    "analyze": {"checkpoint": "MODEL", "device": "cpu"},
    "export": {"packed": "PACKED", "out": "OUT"},
    "calibrate": {"checkpoint": "MODEL", "text": "TEXT", "max_tokens": 64, "window": 16},
    "upcycle": {"dense": "DENSE", "config": "UPCYCLE", "device": "cpu"},
    "repair": {"checkpoint": "PACKED", "original": "MODEL", "text": "TRAIN", "heldout": "HELD"}
    | {"steps": 4, "batch": 4, "window": 32, "rate": 0.005, "device": "cpu"},
    "ask": {"packed": "PACKED", "original": "MODEL", "prompt": "The river", "max_tokens": 8},
    "tune": {"checkpoint": "MODEL", "budget": "60%", "calibration": "GRADIENTS", "device": "cpu"},
    "prove": {"checkpoint": "MODEL", "budget": "60%", "calibration": "GRADIENTS", "text": "HELD"}
    | {"max_tokens": 64, "device": "cpu"},
    "series": {"checkpoint": "MODEL", "calibration": "GRADIENTS", "text": "HELD", "points": 2}
    | {"max_tokens": 64, "device": "cpu"},
    "pilot": {"checkpoint": "MODEL", "text": "TRAIN", "heldout": "HELD", "prompts": ("Mill",)}
    | {"tokens": 64, "max_tokens": 64, "device": "cpu"},
}

RESULTS = (
    ".safetensors",
    ".parquet",
    ".npz",
    "config.json",
    "manifest.json",
    "recipe.yaml",
    "-groups.json",
    "proof.json",
    "done.json",
)
"""How names of files end that jobs leave to be used."""

KEEPING = ("tune", "prove", "series", "pilot")
"""Commands that keep what they found, file by file, and take it up again when they were killed."""

FORMS = ("quantized", "lowrank", "keep")
"""That are scored; all of them take a minute."""

LONG_ALONE = ("ask", "evaluate", "plan-settle", "synthesize-whole", "repair-whole", *KEEPING)
"""Kinds that write nothing but figures at their end, and commands that write as others do; and what
takes long."""


@dataclass(frozen=True)
class Inputs:
    """What commands read, by the words that stand for it. Nothing may change there."""

    places: dict[str, Path]
    before: Contents

    def words(self, command: str, out: Path) -> list[str]:
        named = {word: str(path) for word, path in self.places.items()}
        words = []
        for word in command.split():
            stem, dot, suffix = word.partition(".")
            words.append(f"{out}{dot}{suffix}" if stem == "OUT" else named.get(word, word))
        return words

    def spec(self, kind: str, out: Path) -> dict[str, Any]:
        named = {word: str(path) for word, path in self.places.items()} | {"OUT": str(out)}
        named["UPCYCLE"] = UPCYCLE.format(text=self.places["TEXT"])
        return {
            key: named.get(value, value) if isinstance(value, str) else value
            for key, value in JOBS[kind].items()
        }

    def check(self) -> None:
        assert contents(*self.places.values()) == self.before


def contents(*places: Path) -> Contents:
    """The bytes of every file at or below places, but for checksums of inputs that are kept."""
    found = {}
    for place in places:
        for file in [place, *sorted(place.rglob("*"))]:
            if file.is_file() and not {file.name, file.parent.name} & {*MEASURED, "checksums"}:
                found[f"{place.name}/{file.relative_to(place)}"] = without_seconds(file)
    return found


def without_seconds(file: Path) -> bytes:
    """The bytes of a file; of trials, proofs and pilots without the seconds they took."""
    if "trials" in file.parent.name or file.name in ("proof.json", "done.json"):
        return re.sub(rb'"seconds": [0-9.e-]+', b'"seconds": 0', file.read_bytes())
    return file.read_bytes()


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    mixtral_dir: Path,
    dense_parent_dir: Path,
    tiny_text: str,
) -> Inputs:
    place = tmp_path_factory.mktemp("inputs")
    places = {
        "MODEL": mixtral_dir,
        "DENSE": dense_parent_dir,
        "PACKED": place / "packed",
        "OTHER": place / "other",
        "PATCH": place / "patch",
        "APPLIED": place / "applied",
        "TEXT": place / "text.txt",
        "CODED": place / "coded",
        "RECIPE": place / "recipe.yaml",
        "WHOLE": place / "whole.yaml",
        "BUDGET": place / "budget.yaml",
        "GRADIENTS": place / "gradients.safetensors",
        "CONFIG": place / "upcycle.yaml",
    }
    places["TEXT"].write_text(tiny_text)
    places["TRAIN"], places["HELD"] = write_texts(place, tiny_text)
    places["RECIPE"].write_text(RECIPE.to_yaml())
    places["WHOLE"].write_text(WHOLE)
    with_gradients(open_checkpoint(mixtral_dir), places["GRADIENTS"])
    budget = {"calibration": str(places["GRADIENTS"]), "budget": {"knob": 0.01}}
    places["BUDGET"].write_text(json.dumps({"version": 2, "name": "b", **budget}))
    places["CONFIG"].write_text(UPCYCLE.format(text=places["TEXT"]))
    compress(mixtral_dir, places["PACKED"], RECIPE)
    compress(mixtral_dir, places["OTHER"], OTHER)
    compress(mixtral_dir, places["CODED"], Recipe.from_yaml(WHOLE))
    export(places["PACKED"], places["PATCH"], "patch", base=places["OTHER"])
    apply_patch(places["OTHER"], places["PATCH"], places["APPLIED"])
    return Inputs(places, contents(*places.values()))


def prepare() -> None:
    """From now on, repairs write a training checkpoint after every other step, tunings score a few
    forms, some groups that are staged become weight files, and what can be computed again is kept
    beside the temporary files."""
    RepairSettings.model_fields["save_every"].default = 2
    RepairSettings.model_rebuild(force=True)
    scoring.codecs_for = few_forms  # type: ignore[attr-defined]
    own_files.OWN_BYTES = OWN_BYTES
    os.environ[CACHE_VARIABLE] = str(Path(os.environ["TMPDIR"]).with_name("cache"))


def few_forms(*given: Any, **options: Any) -> list[Codec]:
    return [codec for codec in codecs_for(*given, **options) if codec.name in FORMS]


def command(words: Sequence[str]) -> None:
    prepare()
    sys.argv = ["ders", *words]
    main()


def instants(changes: int, tries: int, name: str) -> list[int]:
    """The changes before which work is killed."""
    drawn = random.Random(f"{SEED} {name}")
    return sorted(drawn.sample(range(1, changes + 1), min(tries, changes)))


def undisturbed(ended: Ended, place: Path) -> Contents:
    """What work leaves below its place: all of it, hidden files too, but no temporary one."""
    assert ended.status == 0, ended.printed
    assert temporary(place) == []
    return contents(place)


def temporary(place: Path) -> list[str]:
    """Temporary files that stayed. torch makes an empty folder when its compiler is imported. A
    directory that was killed before it said whose it is stays for a minute."""
    left = [path for path in (place / "tmp").iterdir() if not path.match("torchinductor_*")]
    for path in left:
        if path.is_dir() and not any(each.stat().st_size for each in path.iterdir()):
            for each in (*path.iterdir(), path):
                os.utime(each, (0, 0))
            sweep_scratch(place / "tmp", path.name[:-8])
    return [path.name for path in left if path.exists()]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command(
    name: str, inputs: Inputs, tmp_path: Path, rounds: Rounds, tally: Counter[str]
) -> None:
    if name in LONG_ALONE and rounds(1, 2) == 1:
        pytest.skip("part of the long form")
    place = tmp_path / "undisturbed"
    place.mkdir()
    out = place / "out"
    for _ in range(rounds(1, 2)):  # the first may compile loops, so its time tells nothing
        shutil.rmtree(place)
        place.mkdir()
        began = time.monotonic()
        first = run(command, inputs.words(COMMANDS[name], out), place=place)
        seconds = time.monotonic() - began
    whole = undisturbed(first, place)
    assert first.changes
    drawn = random.Random(f"{SEED} {name}")
    deaths: list[dict[str, Any]] = [
        {"fatal": change} for change in instants(first.changes, rounds(1, EVERY), name)
    ]
    deaths += [{"seconds": drawn.uniform(0, seconds)} for _ in range(rounds(0, 20))]
    for death in deaths:
        shutil.rmtree(place)
        place.mkdir()
        words = inputs.words(COMMANDS[name], out)
        killed = run(command, words, place=place, **death)
        if not killed.killed:  # a training makes a few changes more or fewer
            assert undisturbed(killed, place) == whole
            continue
        tally["kills before a change" if "fatal" in death else "kills at random times"] += 1
        left = {key: value for key, value in contents(place).items() if key in whole}
        is_whole = {key: whole[key] for key in left} if name in KEEPING else whole
        assert left in ({}, is_whole), f"killed {death}, the output is not whole"
        inputs.check()
        if left != whole:
            again = run(command, words, place=place)
            if "--resume" in again.printed:
                assert again.status != 0
                again = run(command, [*words, "--resume"], place=place)
            assert undisturbed(again, place) == whole, f"killed {death}"
        inputs.check()


def work(workspace: Path, root: Path) -> None:
    prepare()
    os.environ[ROOTS_VARIABLE] = str(root)
    run_worker(Workspace(workspace), stop_when_idle=True)


def results(workspace: Path) -> Contents:
    """What jobs leave to be used: weights, tables, manifests, recipes, scores, figures; no log, and
    no times."""
    left = contents(workspace)
    found = {name: value for name, value in left.items() if name.endswith(RESULTS)}
    for name in left:
        if name.endswith("quality.json"):
            figures = json.loads(left[name]) | {"seconds": None}
            found[name] = json.dumps(figures).encode()
    return found


@pytest.mark.parametrize("kind", JOBS)
def test_a_killed_workers_job(
    kind: str, inputs: Inputs, tmp_path: Path, rounds: Rounds, tally: Counter[str]
) -> None:
    """The next worker takes the job up by itself, and finishes it."""
    if kind in LONG_ALONE and rounds(1, 2) == 1:
        pytest.skip("part of the long form")
    place, root = tmp_path / "studio", tmp_path.parent

    def filed() -> JobStore:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        store = JobStore(Workspace(place).store_path)
        store.submit(kind, inputs.spec(kind, place / "exports" / "out"))
        return store

    def finished(store: JobStore, ended: Ended) -> Contents:
        assert ended.status == 0, ended.printed
        (job,) = store.list()
        assert (job.state, job.error) == ("done", None)
        assert temporary(place) == []
        return results(place)

    for _ in range(rounds(1, 2)):  # the first may compile loops, so its time tells nothing
        store = filed()
        began = time.monotonic()
        first = run(work, place, root, place=place)
        seconds = time.monotonic() - began
    whole = finished(store, first)
    assert whole
    assert first.changes
    drawn = random.Random(f"{SEED} {kind}")
    deaths: list[dict[str, Any]] = [
        {"fatal": change} for change in instants(first.changes, rounds(1, EVERY), kind)
    ]
    deaths += [{"seconds": drawn.uniform(0, seconds)} for _ in range(rounds(0, 20))]
    for death in deaths:
        store = filed()
        killed = run(work, place, root, place=place, **death)
        assert killed.killed or "seconds" in death, killed.printed
        if killed.killed:
            tally["kills before a change" if "fatal" in death else "kills at random times"] += 1
        inputs.check()
        assert finished(store, run(work, place, root, place=place)) == whole, death
        inputs.check()
