"""An unfinished output that was damaged or edited by hand is continued to the same bytes.

It may be refused before, in one sentence; what is damaged of it is made again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from support.bounded_time import at_most
from support.every_file import write_tree
from support.every_reader import is_line
from support.mutations import Damage, damaged_bytes, damaged_json
from support.seeded_attacks import refusals

from ders_core.codecs import Entropy, LowRank, Quantized
from ders_core.errors import Cancelled, DersError
from ders_core.files.output import STATE, partial_path
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule

SECONDS = 60
RECIPES = {
    "in place": Recipe(
        name="two",
        rules=(Rule(codec=Quantized(bits=2)), Rule(codec=LowRank(rank=2), projections=("up",))),
    ),
    "staged": Recipe(name="staged", rules=(Rule(codec=Entropy(bits=1.5)),)),
}
GROUPS = 6
DAMAGES: dict[str, Damage] = {".json": damaged_json}
"""By the end of a file's name; of other files bytes are damaged."""


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(place)): file.read_bytes()
        for file in sorted(place.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    write_tree(place)
    return place / "original"


def stop_after(groups: int) -> Callable[[int, int, str], None]:
    encoded = 0

    def step(done: int, total: int, message: str) -> None:
        nonlocal encoded
        encoded += message.startswith("encoded")
        if encoded == groups:
            raise Cancelled

    return step


def attack(begun: dict[str, bytes], out: Path, original: Path, recipe: Recipe, seed: int) -> int:
    """Damage a file of what is begun, and continue it until it is whole; returns how many refusals
    came before that."""
    rng = Random(f"{recipe.name} {seed}")
    partial = partial_path(out)
    shutil.rmtree(out.parent, ignore_errors=True)
    for name, content in begun.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    name = rng.choice(sorted(name for name in begun if name != STATE))
    damage = DAMAGES.get(Path(name).suffix, damaged_bytes)
    (partial / name).write_bytes(damage(rng, begun[name]))
    refused: list[str] = []
    while not out.exists():
        try:
            with at_most(SECONDS):
                compress(original, out, recipe, resume=True)
        except DersError as error:
            refused.append(str(error))
        assert len(refused) <= GROUPS, f"{name}: refused for ever: {refused[-1]}"
    assert all(map(is_line, refused)), refused
    return len(refused)


@pytest.mark.parametrize("way", RECIPES)
def test_a_damaged_journal(
    way: str, original: Path, tmp_path: Path, rounds: Callable[[int, int], int], tally: Counter[str]
) -> None:
    recipe, out = RECIPES[way], tmp_path / "place" / "out"
    compress(original, tmp_path / "whole", recipe)
    whole = contents(tmp_path / "whole")
    with pytest.raises(Cancelled):
        compress(original, out, recipe, progress=stop_after(4))
    begun = contents(partial_path(out))
    assert len(begun) > 4

    def one(seed: int) -> int:
        tally["damaged journals"] += 1
        refused = attack(begun, out, original, recipe, seed)
        assert contents(out) == whole, "other bytes"
        assert [file.name for file in out.parent.iterdir()] == ["out"]
        return refused

    refusals(way, range(rounds(5, 1500)), one)
