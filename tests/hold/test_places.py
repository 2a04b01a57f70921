"""Disks that are full, that become full, read-only disks, and places that vanish: every verb, every
writer. One sentence names the place or the file at fault, and nothing is left behind.

The disk is a small tmpfs of its own where mounting is allowed; `support/small_disks.py` says what
stands for it elsewhere.
"""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gradient_calibrations import with_gradients
from support.messages import raises_saying
from support.patched_checkpoints import other, packed  # noqa: F401 (fixtures)
from support.repair_support import write_texts
from support.shell import ders, error_of
from support.small_disks import SmallDisk, small_disk

from ders_core.demo.corpus import DOMAINS, Corpus
from ders_core.errors import DersError, OutputError
from ders_core.files import output
from ders_core.files.output import new_file, output_directory, partial_path
from ders_core.packed.open import open_checkpoint
from ders_core.packed.patch import apply_patch, rollback
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import load_recipe

Rounds = Callable[[int, int], int]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk") / "small") as small:
        yield small


@pytest.fixture(scope="module")
def inputs(
    mixtral_dir: Path,
    packed: Path,  # noqa: F811
    other: Path,  # noqa: F811
    tiny_text: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """What the verbs read, none of it on the small disk."""
    place = tmp_path_factory.mktemp("inputs")
    export(packed, place / "patch", "patch")
    apply_patch(other, place / "patch", place / "applied")
    (place / "text.txt").write_text(tiny_text)
    train, held = write_texts(place, tiny_text)
    calibration = place / "gradients.safetensors"
    with_gradients(open_checkpoint(mixtral_dir), calibration)
    budget = {"version": 2, "name": "b", "calibration": str(calibration), "budget": {"knob": 0.01}}
    (place / "budget.yaml").write_text(json.dumps(budget))
    return {
        "BUDGET": place / "budget.yaml",
        "CKPT": mixtral_dir,
        "PACKED": packed,
        "OTHER": other,
        "PATCH": place / "patch",
        "APPLIED": place / "applied",
        "TEXT": place / "text.txt",
        "TRAIN": train,
        "HELD": held,
    }


VERBS: dict[str, tuple[str, ...]] = {
    "compress": ("compress", "CKPT", "OUT", "--recipe", "quantized-2bit", "--workers", "1"),
    "whole": ("compress", "CKPT", "OUT", "--recipe", "lossless-whole", "--workers", "1"),
    "settle": ("plan", "CKPT", "--recipe", "BUDGET", "--settle", "OUT.yaml"),
    "synthesize": ("synthesize", "PACKED", "OUT"),
    "export": ("export", "PACKED", "OUT", "--format", "packed"),
    "original": ("export", "PACKED", "OUT", "--format", "original"),
    "patch": ("export", "PACKED", "OUT", "--format", "patch"),
    "apply": ("apply", "OTHER", "PATCH", "OUT"),
    "rollback": ("rollback", "APPLIED", "OUT"),
    "html": ("analyze", "CKPT", "-o", "OUT.html"),
    "json": ("analyze", "CKPT", "-o", "OUT.json"),
    "parquet": ("analyze", "CKPT", "-o", "OUT.parquet"),
    "calibrate": ("calibrate", "CKPT", "-o", "OUT", "--text", "TEXT", "--max-tokens", "64"),
    "demo": ("demo", "OUT"),
    "build": ("demo", "OUT", "--build", "--steps", "2"),
    "repair": (
        *("repair", "PACKED", "-o", "OUT", "--original", "CKPT", "--text", "TRAIN"),
        *("--heldout", "HELD", "--window", "32", "--batch", "4", "--steps", "4"),
    ),
}
CONTINUED = {"compress", "whole", "repair"}
"""Verbs that leave what is finished when the disk becomes full, and go on from there."""

SLOW = {"build", "html", "repair"}
"""Verbs whose work takes seconds before they write: that is part of the long form alone."""


def words(verb: str, inputs: dict[str, Path], out: Path) -> list[str]:
    named = {"OUT": str(out)} | {name: str(path) for name, path in inputs.items()}
    return [
        named[word] if word in named else word.replace("OUT.", f"{out}.") for word in VERBS[verb]
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_seen_before_the_work(
    verb: str, disk: SmallDisk, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both numbers: what is needed and what is free."""
    if not disk.mounted:
        pytest.skip("a limit of the size of files does not change what is free")

    def never(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    for place in (
        "ders_core.pipeline.compress._encode_groups",
        "ders_core.calibrate.calibrator.loaded",
        "ders_core.demo.build.read_corpus",
        "ders_core.demo.unpack.write_original",
        "ders_core.analysis.analyze",
        "ders_core.pipeline.budget.settled",
        "ders_core.repair.repairer._train_and_measure",
    ):
        monkeypatch.setattr(place, never)
    with disk.room(0):
        done = ders(*words(verb, inputs, disk.place / "out"))
        assert disk.names() == []
    assert done.returncode == 1, done.stdout
    line = error_of(done)
    assert str(disk.place) in line
    assert "needs" in line
    assert "0 B are free" in line


@pytest.mark.parametrize("verb", VERBS)
def test_a_read_only_disk_is_seen_before_the_work(
    verb: str, disk: SmallDisk, inputs: dict[str, Path]
) -> None:
    if not disk.mounted and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    with disk.read_only():
        done = ders(*words(verb, inputs, disk.place / "out"))
    assert done.returncode == 1
    assert error_of(done).startswith(f"ders: {disk.place / 'out'}")
    assert disk.names() == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_becomes_full(
    verb: str,
    disk: SmallDisk,
    inputs: dict[str, Path],
    rounds: Rounds,
    monkeypatch: pytest.MonkeyPatch,
    tally: Counter[str],
) -> None:
    """At several bytes of the writing: what was foretold was too little, or others wrote too."""
    if verb in SLOW and rounds(1, 2) == 1:
        pytest.skip("part of the long form")
    monkeypatch.setattr(output, "check_room", lambda *_: None)
    monkeypatch.setattr("ders_core.files.directory.check_room", lambda *_: None)
    monkeypatch.setattr("ders_core.repair.repairer.check_room", lambda *_: None)
    out, needed = disk.place / "out", 100_000
    for number in range(rounds(1, 12)):
        with disk.room(number * needed // 12 + (8192 if disk.mounted else 3000)):
            done = ders(*words(verb, inputs, out))
            tally["disks that become full"] += 1
            left = disk.names()
        if done.returncode == 0:
            break
        assert done.returncode == 1
        assert str(out) in error_of(done)
        if verb in CONTINUED and left:
            assert "--resume" in error_of(done)
            assert {name.split("/")[0] for name in left} == {"out.partial"}
            assert not [name for name in left if name.endswith(".tmp")]
            shutil.rmtree(partial_path(out))
            left = disk.names()
        assert left == []
    for name in list(disk.place.iterdir()):
        shutil.rmtree(name) if name.is_dir() else name.unlink()


# Places that vanish

Verb = Callable[[dict[str, Path], Path, Callable[[int, int, str], None]], Any]

WRITERS: dict[str, Verb] = {
    "compress": lambda at, out, step: compress(
        at["CKPT"], out, load_recipe("quantized-2bit"), progress=step
    ),
    "synthesize": lambda at, out, step: synthesize(at["PACKED"], out, progress=step),
    "export": lambda at, out, step: export(at["PACKED"], out, "packed", progress=step),
    "original": lambda at, out, step: export(at["PACKED"], out, "original", progress=step),
    "patch": lambda at, out, step: export(at["PACKED"], out, "patch", progress=step),
    "apply": lambda at, out, step: apply_patch(at["OTHER"], at["PATCH"], out, progress=step),
    "rollback": lambda at, out, step: rollback(at["APPLIED"], out, progress=step),
}


class Vanishing:
    """A progress callback that removes a directory at its call `when` after the output is begun.

    A verb tells its progress while it writes, so the removal comes between two writes, or in one.
    """

    def __init__(self, directory: Path, partial: Path, when: int) -> None:
        self.directory, self.partial, self.when, self.gone = directory, partial, when, False

    def __call__(self, done: int, total: int, message: str) -> None:
        if self.gone or not self.partial.exists():
            return
        if self.when == 0:
            shutil.rmtree(self.directory)
            self.gone = True
        self.when -= 1


@pytest.mark.parametrize("what", ["partial", "parent"])
@pytest.mark.parametrize("verb", WRITERS)
def test_a_place_that_vanishes(
    verb: str,
    what: str,
    inputs: dict[str, Path],
    tmp_path: Path,
    rounds: Rounds,
    tally: Counter[str],
) -> None:
    """Whenever that happens, there is no output of which a part is missing."""
    for when in range(rounds(3, 8)):
        parent = tmp_path / f"parent{when}"
        parent.mkdir()
        out = parent / "out"
        partial = partial_path(out)
        step = Vanishing(partial if what == "partial" else parent, partial, 2**when - 1)
        refusal: DersError | None = None
        try:
            WRITERS[verb](inputs, out, step)
        except DersError as error:
            refusal = error
        if refusal is None:
            assert not step.gone
            break
        assert step.gone
        tally["places that vanish"] += 1
        assert "\n" not in str(refusal)
        assert str(out) in str(refusal)
        assert not parent.exists() or list(parent.iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "within"),
    [
        ("json", "ders_core.analysis.analyze"),
        ("parquet", "ders_core.analysis.analyze"),
        ("calibrate", "ders_core.calibrate.calibrator._measure"),
        ("settle", "ders_core.pipeline.budget.settled"),
        ("demo", "ders_core.demo.unpack.write_original"),
        ("build", "ders_core.demo.build.joined"),
    ],
)
def test_a_folder_that_vanishes_during_other_work(
    verb: str,
    within: str,
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    work = pkgutil.resolve_name(within)

    def vanish(*given: Any, **options: Any) -> Any:
        shutil.rmtree(parent)
        return work(*given, **options)

    few = {domain: ["a few words"] for domain in DOMAINS}
    monkeypatch.setattr("ders_core.demo.build.read_corpus", lambda: Corpus(few, few, few))
    monkeypatch.setattr(within, vanish)
    line = error_of(ders(*words(verb, inputs, parent / "out")))
    assert str(parent / "out") in line
    assert "removed" in line
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_made_again_is_not_taken_for_whole(tmp_path: Path) -> None:
    """Libraries make the folder that they write into; what was written before is missing then."""

    def write() -> None:
        with output_directory(tmp_path / "out") as partial:
            (partial / "first").write_text("x")
            shutil.rmtree(partial)
            partial.mkdir()
            (partial / "second").write_text("y")

    with raises_saying(OutputError, tmp_path / "out", "out.partial", "removed"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [300, 5000])
@pytest.mark.parametrize("verb", VERBS)
def test_long_paths(verb: str, length: int, inputs: dict[str, Path], tmp_path: Path) -> None:
    """As an output and as an input: one sentence of bearable length."""
    long = tmp_path / "/".join("x" * min(length, 300) for _ in range(max(1, length // 300)))
    done = ders(*words(verb, inputs, long))
    assert done.returncode == 1
    assert len(error_of(done)) < 1200
    if verb not in ("demo", "build"):  # which read nothing
        done = ders(*words(verb, dict.fromkeys(inputs, long), tmp_path / "out"))
        assert done.returncode == 1
        assert len(error_of(done)) < 1200
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def race() -> None:
        with new_file(tmp_path / "a") as aside:
            aside.write_text("ours")
            (tmp_path / "a").write_text("theirs")

    with raises_saying(OutputError, tmp_path / "a", "appeared"):
        race()
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "theirs"
