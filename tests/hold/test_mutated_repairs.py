"""Repairs that meet damage: of the packed checkpoint that comes in, of what was written before the
process died, and of what came out. A repair is refused in one sentence, or ends with the bytes of
an undisturbed one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from support.bounded_time import at_most
from support.every_reader import is_line, read_manifest
from support.mutations import Damage, damaged_bytes, damaged_json, damaged_weights
from support.repair_support import settings, write_texts
from support.seeded_attacks import refusals

from ders_core.codecs import LowRank, Quantized
from ders_core.errors import Cancelled, DersError
from ders_core.files.model_files import SINGLE
from ders_core.files.output import partial_path
from ders_core.packed.names import MANIFEST
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.repair.repairer import CHECKPOINTS, repair
from ders_core.repair.work import Work
from ders_core.upcycle.checkpoints import SEAL, find_checkpoints

SECONDS = 60
RECIPE = Recipe(
    name="two",
    rules=(Rule(codec=Quantized(bits=2)), Rule(codec=LowRank(rank=2), projections=("up",))),
)
FEW = settings(steps=4, save_every=2)
DAMAGES: dict[str, Damage] = {
    MANIFEST: damaged_json,
    "config.json": damaged_json,
    SINGLE: damaged_weights,
}
"""Of the files of a packed checkpoint, by name."""

Rounds = Callable[[int, int], int]


@pytest.fixture(scope="module")
def tree(mixtral_dir: Path, tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`original`, `packed`, texts, `repaired`, and `begun`: a repair that was stopped after its
    third step, with checkpoints of the second and the third."""
    tree = tmp_path_factory.mktemp("repairs")
    shutil.copytree(mixtral_dir, tree / "original")
    write_texts(tree, tiny_text)
    compress(tree / "original", tree / "packed", RECIPE)
    again(tree, tree / "repaired")

    def stop(done: int, total: int, message: str) -> None:
        if message.startswith("step 3"):
            raise Cancelled

    with pytest.raises(Cancelled):
        again(tree, tree / "begun", stop)
    shutil.copy(tree / "repaired" / SINGLE, tree / "repaired.whole")
    return tree


def again(
    tree: Path, out: Path, progress: Callable[[int, int, str], None] = lambda *_: None
) -> None:
    repair(
        tree / "packed",
        tree / "original",
        out,
        text=tree / "train.txt",
        heldout=tree / "heldout.txt",
        settings=FEW,
        device="cpu",
        resume=True,
        progress=progress,
    )


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(place)): file.read_bytes()
        for file in sorted(place.rglob("*"))
        if file.is_file()
    }


def refused(work: Callable[[], object]) -> bool:
    """Whether work refuses, which it does in one sentence."""
    refusal = ""
    try:
        with at_most(SECONDS):
            work()
    except DersError as error:
        refusal = str(error) or "\n"
    assert not refusal or is_line(refusal), refusal
    return bool(refusal)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_packed_checkpoint_is_refused_or_can_be_repaired(
    name: str, tree: Path, rounds: Rounds, tally: Counter[str]
) -> None:
    """All that is read before the training is read."""
    file = tree / "packed" / name
    whole = file.read_bytes()

    def open_it() -> None:
        places, texts = (tree / "packed", tree / "original"), (tree / "train.txt", None)
        Work.of(*places, *texts, FEW, torch.device("cpu"), False, lambda _: None)

    def attack(seed: int) -> bool:
        tally["damaged inputs of a repair"] += 1
        file.write_bytes(DAMAGES[name](Random(f"{name} {seed}"), whole))
        try:
            return refused(open_it)
        finally:
            file.write_bytes(whole)

    assert not refused(open_it)
    assert refusals(name, range(rounds(4, 1200)), attack) > 0


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_result_of_a_repair_is_refused(
    name: str, tree: Path, rounds: Rounds, tally: Counter[str]
) -> None:
    """Weights that are not the ones that were written never pass `verify`."""
    file = tree / "repaired" / name
    whole = file.read_bytes()

    def attack(seed: int) -> bool:
        tally["damaged results of a repair"] += 1
        file.write_bytes(DAMAGES[name](Random(f"repaired {name} {seed}"), whole))
        try:
            return refused(lambda: read_manifest(tree, "repaired"))
        finally:
            file.write_bytes(whole)

    assert not refused(lambda: read_manifest(tree, "repaired"))
    assert refusals(name, range(rounds(4, 1200)), attack) > 0


def test_a_damaged_training_checkpoint_is_noticed(
    tree: Path, tmp_path: Path, rounds: Rounds, tally: Counter[str]
) -> None:
    """By what looks for the checkpoint to go on from, which takes the one before: files are
    damaged, missing, of another step, or of another name. A seal may be written otherwise and say
    the same."""
    begun = partial_path(tree / "begun") / CHECKPOINTS
    folder = Path(shutil.copytree(begun, tmp_path / CHECKPOINTS))
    older, newest = sorted(folder.iterdir(), key=lambda path: int(path.name.partition("-")[2]))
    whole = contents(newest)
    names = sorted(whole)

    def harm(rng: Random) -> None:
        name, other = rng.sample(names, 2)
        match rng.randrange(12):
            case 0:
                (newest / name).unlink()
            case 1:
                shutil.copy(older / name, newest / name)
            case 2:
                shutil.copy(newest / other, newest / name)
            case 3:
                (newest / f"{rng.randrange(10)}.safetensors").write_bytes(whole[name])
            case _:
                damage = damaged_json if name.endswith(".json") else damaged_bytes
                (newest / name).write_bytes(damage(rng, whole[name]))

    def attack(seed: int) -> bool:
        tally["damaged training checkpoints"] += 1
        harm(Random(f"checkpoint {seed}"))
        try:
            with at_most(SECONDS):
                found = find_checkpoints(folder)
            assert is_line(found.sentence), found.sentence
            if found.newest == newest:
                now = contents(newest)
                assert {**now, SEAL: b""} == {**whole, SEAL: b""}, "taken for whole"
                return False
            assert found.newest == older
            assert [each.path for each in found.damaged] == [newest]
            return True
        finally:
            shutil.rmtree(newest)
            shutil.copytree(begun / newest.name, newest)

    assert find_checkpoints(folder).newest == newest
    seeds = sorted({656, *range(rounds(60, 4000))})  # 656 did harm once: a name of the seal alone
    assert refusals("checkpoint", seeds, attack) > 0


def test_an_unfinished_repair_that_was_damaged(
    tree: Path, tmp_path: Path, rounds: Rounds, tally: Counter[str]
) -> None:
    """Any file of its training checkpoints."""
    whole = contents(tree / "repaired")
    unfinished = partial_path(tree / "begun")
    begun = contents(unfinished)
    places = sorted(name for name in begun if name.startswith(f"{CHECKPOINTS}/"))
    assert len(places) > 8

    def attack(seed: int) -> int:
        tally["damaged training checkpoints"] += 1
        rng, out = Random(f"begun {seed}"), tmp_path / str(seed) / "out"
        partial = Path(shutil.copytree(unfinished, partial_path(out)))
        name = rng.choice(places)
        damage = damaged_json if name.endswith(".json") else damaged_bytes
        (partial / name).write_bytes(damage(rng, begun[name]))
        times = 0
        while refused(lambda: again(tree, out)):
            times += 1
            assert times <= len(places), f"{name}: refused for ever"
        assert contents(out) == whole, f"{name}: other bytes"
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        return times

    refusals("begun", sorted({8, *range(rounds(1, 400))}), attack)  # 8 did harm once
