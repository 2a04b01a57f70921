"""Further deltas: a named set on a base that stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying
from support.upcycle_support import RENEWED, assert_same, config_of, further, tensors

from ders_core.codecs import Chain
from ders_core.errors import RecipeError
from ders_core.packed.patch import apply_patch, make_patch, rollback
from ders_core.packed.reader import PackedCheckpoint
from ders_core.upcycle.upcycler import upcycle, upcycle_further


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("[{form: lowrank, rank: 2}]", "[{form: sparse, drop_rate: 0.8}]"),
        ("[{form: sparse, drop_rate: 0.8}]", "[{form: sparse, drop_rate: 0.9}]"),
        (RENEWED, "[{form: lowrank, rank: 1}]"),
    ],
)
def test_further_deltas_are_a_set_that_comes_and_goes(
    first: str, second: str, llama: Path, text: Path, heldout: Path, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    upcycle(llama, before, config_of(text, first, universal=True), device="cpu")
    more = further(text, "more", second, heldout=heldout)
    result = upcycle_further(before, after, more, device="cpu")
    assert result.start_difference < 1e-4
    assert result.perplexity is not None
    assert result.dense_perplexity is not None
    assert result.perplexity < result.dense_perplexity  # of what went in
    old, new = tensors(before), tensors(after)
    bases = [name for name in old if name.endswith(".base")]
    assert bases
    assert all(torch.equal(old[name], new[name]) for name in bases)
    stages = {name.split(".ders.")[1].split(".")[1] for name in new if ".ders." in name}
    assert stages == {"base", "0", "1"}
    record = json.loads((after / "ders_upcycle.json").read_text(encoding="utf-8"))
    assert record["sets"] == ["tiny", "more"]

    rollback(after, tmp_path / "back")  # the set goes
    assert_same(before, tmp_path / "back")
    patch = tmp_path / "patch"  # the set alone
    patch.mkdir()
    made = make_patch(PackedCheckpoint(after), patch, before)
    deltas = sum(t.nbytes for name, t in new.items() if ".ders." in name and ".1." in name)
    routers = sum(t.nbytes for name, t in new.items() if "gate.weight" in name)
    assert made.bytes <= deltas + routers
    apply_patch(before, patch, tmp_path / "again")  # and comes
    assert_same(after, tmp_path / "again")

    third = further(text, "third", "[{form: lowrank, rank: 1}]", router={"train": False})
    upcycle_further(after, tmp_path / "third", third, device="cpu")
    chain = PackedCheckpoint(tmp_path / "third").manifest.groups[0].group_codec().codec
    assert isinstance(chain, Chain)
    assert len(chain.stages) == 3


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"name": "tiny"}, ["'tiny'", "name"]),
        ({"experts": 5}, ["experts is 5", "3 in before"]),
        ({"forms": "[{form: vanilla}]"}, ["vanilla", "no base", "lowrank"]),
    ],
)
def test_what_cannot_be_added_is_refused(
    changes: dict[str, Any], facts: list[str], llama: Path, text: Path, tmp_path: Path
) -> None:
    upcycle(llama, tmp_path / "before", config_of(text, training={"steps": 1}), device="cpu")
    forms = changes.pop("forms", "[{form: lowrank, rank: 1}]")
    config = further(text, changes.pop("name", "more"), forms, **changes)
    with raises_saying(RecipeError, *facts):
        upcycle_further(tmp_path / "before", tmp_path / "after", config, device="cpu")
    assert not list(tmp_path.glob("after*"))
