"""Many names at once are matched as each name alone is."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.bounded_time import at_most
from support.large_workspaces import make_many_tensors

from ders_core.checkpoint.layouts import Layout, known_layouts
from ders_core.checkpoint.names import MOST_DIGITS, FirstOf
from ders_core.checkpoint.numbering import NumberedNames
from ders_core.packed.open import open_checkpoint

PARTS = ("0", "1", "07", "12", "٣", "1٣", "w1", "w12", "e_1", "1_e", "a", "é", "\n", "", "9" * 19)


def entry(block: str, *names: str, shared: tuple[str, ...] = ()) -> Layout:
    return Layout.model_validate(
        {
            "family": "f",
            "block": block,
            "experts": dict.fromkeys(names, "down"),
            "shared": dict.fromkeys(shared, "down"),
        }
    )


def check(layout: Layout, names: list[str]) -> int:
    """Hold `match_each` to `match`; how many names matched."""
    numbered = NumberedNames.of(names)
    both = (
        (layout.match, layout.match_each(numbered)),
        (layout.match_shared, layout.match_each_shared(numbered)),
    )
    matched = 0
    for match, together in both:
        for name, found in zip(names, together, strict=True):
            alone = match(name)
            assert (alone is None) == (found is None), name
            if alone is not None and found is not None:
                same, expert = found
                assert expert == alone.expert, name
                fields = ("block", "stack", "scope", "layer", "weights")
                assert all(getattr(same, f) == getattr(alone, f) for f in fields), name
                matched += 1
    return matched


LAYOUTS = (
    entry("{stack}.{layer}.mlp", "experts.{expert}.w1", "experts.{expert}.w12"),
    entry("{stack}.{layer}", "{expert}.w1", "{n}.{expert}.a", shared=("{any}.a", "w1")),
    entry("{stack}.{layer}.{n}", "{expert}.{any}", "{any}.w1"),
    entry("m.{layer}.e_{expert}", "a", "w1"),
    entry("{stack}.{layer}.{expert}", "a", "w1"),
    entry("{stack}.{layer}.1", "{expert}.a", "{any}.1.a"),
    entry("{stack}.{layer}", "1.{expert}.a", "1.{expert}.1"),
    entry("{stack}.1{layer}", "{expert}.a", "{expert}{n}.a"),
    entry("{layer}", "{expert}.a", "a.{stack}.a", shared=("1.a", "{n}.w1")),
    entry("{stack}.w{layer}", "w{expert}.a", "e_{expert}.a"),
)
"""Of every kind: plain ones, ones with numbers of their own, with the expert in the block, and ones
that no quick expression finds."""


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.block)
def test_drawn_names(layout: Layout) -> None:
    draw = Random(layout.block)
    texts = [re.sub(r"\{stack\}", "m.3", layout.block + f".{name}") for name in layout.experts]
    texts += [f"m.3.{name}" for name in layout.shared]
    names = []
    for _ in range(150):
        name = re.sub(r"\{\w+\}", lambda _: draw.choice(PARTS), draw.choice(texts))
        parts = name.split(".")
        if draw.random() < 0.3:
            parts[draw.randrange(len(parts))] = draw.choice(PARTS)
        names.append(".".join(parts))
    whole = [name for name in names if "9" * 19 not in name]
    assert check(layout, names) > 0
    assert check(layout, whole) > 0  # none of whose numbers is too long, as in most files
    assert check(layout, [name for name in whole if "\n" not in name]) > 0


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(LAYOUTS),
    st.lists(
        st.lists(st.sampled_from([*PARTS, "m", "mlp", "experts"]), min_size=1, max_size=7),
        max_size=12,
    ),
)
@example(LAYOUTS[1], [["m", "0", "1", "w1"], ["m", "0", "2", "w1"], ["m", "0", "9" * 19, "w1"]])
@example(LAYOUTS[6], [["m", "0", "2", "5", "a"], ["m", "0", "1", "5", "a"]])
@example(LAYOUTS[5], [["m", "0", "2", "5", "a"], ["m", "0", "1", "5", "a"]])
def test_any_names(layout: Layout, parts: list[list[str]]) -> None:
    check(layout, [".".join(each) for each in parts])


def test_shipped_layouts() -> None:
    fields = {"stack": "model.layers", "n": "1", "any": "ff"}
    for layout in known_layouts():
        names = [
            (name if "{layer}" in name else f"{layout.block}.{name}").format(
                layer=layer, expert=expert, **fields
            )
            for name in (*layout.experts, *layout.shared, *layout.router)
            for layer in (0, 11)
            for expert in (0, 7, 10)
        ]
        assert check(layout, names) > 0


def test_names_of_one_kind_are_counted() -> None:
    names = ["m.1.e.2.w1", "1.x.2", "m.10.e.33.w1", "", "m.1.2.3", "m.4.5.6", "m.1.e.2.w2"]
    samples = NumberedNames.of(names).samples()
    assert list(samples.values()) == [
        ("m.1.e.2.w1", 2),
        ("1.x.2", 1),
        ("", 1),
        ("m.1.2.3", 1),  # the last part is no number between dots
        ("m.4.5.6", 1),
        ("m.1.e.2.w2", 1),
    ]
    assert NumberedNames.of(["a.1.\n.2.b", "a.3.\n.4.b"]).numbers == ["1", "2", "3", "4"]
    assert NumberedNames.of([]).samples() == {}


def test_no_names_take_long() -> None:
    layouts = [
        entry("{stack}.{layer}", "{any}" * 8 + "!", "x"),
        entry("{stack}.{layer}.mlp", "experts.{expert}.w1", "w{expert}.{any}.a"),
    ]
    names = ["m" + ".1" * 5_000, "1" * 10_000 + ".a", "." * 10_000, f"m.{'9' * MOST_DIGITS}0." * 9]
    with at_most(20):
        for layout in layouts:
            assert check(layout, names) == 0


def test_experts_are_not_looked_up_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, as many names are matched by themselves."""
    looked_up = 0
    fill = FirstOf.fill

    def counted(self: FirstOf, name: str) -> object:
        nonlocal looked_up
        looked_up += 1
        return fill(self, name)

    monkeypatch.setattr(FirstOf, "fill", counted)
    counts = []
    for experts in (3, 30):
        make_many_tensors(tmp_path / str(experts), 2, experts)
        looked_up = 0
        assert open_checkpoint(tmp_path / str(experts)).num_experts == experts
        counts.append(looked_up)
    assert counts[0] == counts[1] > 0
