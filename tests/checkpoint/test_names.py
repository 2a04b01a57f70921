"""Names are matched as a regular expression would match them, in a time that a checkpoint cannot
make long."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.bounded_time import at_most
from support.messages import raises_saying

from ders_core.checkpoint.layouts import Layout, dense_layouts, known_layouts
from ders_core.checkpoint.names import MOST_PLACEHOLDERS, Filled, FirstOf, NameTemplate

REFERENCE = {
    "stack": r"(?P<stack>.+?)",
    "layer": r"(?P<layer>\d+)",
    "expert": r"(?P<expert>\d+)",
    "n": r"\d+",
    "any": r"\w+",
}
"""The language of templates, as backtracking expressions."""


def reference(block: str, rest: str, name: str) -> Filled | None:
    """What Python's own expressions find."""

    def expression(template: str) -> str:
        pieces = re.split(r"(\{\w+\})", template)
        return "".join(
            REFERENCE[piece[1:-1]] if piece[:1] == "{" else re.escape(piece) for piece in pieces
        )

    found = re.fullmatch(f"(?P<block>{expression(block)}){expression(rest)}", name)
    if found is None:
        return None
    expert = found.span("expert") if "expert" in found.groupdict() else None
    return Filled(found.end("block"), found.span("layer"), expert)


PIECES = ("{n}", "{any}", ".", "a", "1", "_", "é", "\n")
CHARACTERS = "a1._é\n2٣"


@st.composite
def templates(draw: st.DrawFn) -> tuple[str, str]:
    """A block and the rest, with every placeholder in every place."""
    single = ["{layer}", *draw(st.lists(st.sampled_from(["{stack}", "{expert}"]), unique=True))]
    pieces = draw(st.permutations([*single, *draw(st.lists(st.sampled_from(PIECES), max_size=6))]))
    cut = draw(st.integers(pieces.index("{layer}") + 1, len(pieces)))
    return "".join(pieces[:cut]), "".join(pieces[cut:])


@settings(deadline=None)
@given(templates(), st.lists(st.text(CHARACTERS, max_size=12), min_size=10, max_size=10))
@example(("{stack}.{layer}.{any}_w", "{n}"), ["m.1.a_w_w2", "m.1.2.a_w3", "m.1._w1"])
@example(("{any}{any}{layer}", "{n}{expert}"), ["aa1111", "111111", "a_1٣22", "a1"])
def test_every_name_is_matched_as_by_expressions(
    template: tuple[str, str], names: list[str]
) -> None:
    compiled = NameTemplate(*template)
    for name in names:
        assert compiled.fill(name) == reference(*template, name), name


@settings(deadline=None, max_examples=50)
@given(
    st.lists(templates(), min_size=1, max_size=4),
    st.lists(st.text(CHARACTERS, max_size=12), min_size=8, max_size=8),
)
@example([("{layer}", ".a"), ("{layer}", ".{any}"), ("{stack}.{layer}", ".a")], ["1.a", "1.1", "a"])
def test_the_first_of_several_templates_counts(
    several: list[tuple[str, str]], names: list[str]
) -> None:
    together = FirstOf([NameTemplate(*template) for template in several])
    for name in names:
        filled = [reference(*template, name) for template in several]
        found = [(number, each) for number, each in enumerate(filled) if each is not None]
        assert together.fill(name) == next(iter(found), None), name
        assert together.fill_after(name, 1) == next((f for f in found if f[0] > 0), None), name


def shipped_names() -> list[tuple[str, str]]:
    return [
        (layout.block, f".{name}")
        for layout in (*known_layouts(), *dense_layouts())
        for name in (*layout.experts, *layout.shared)
        if "{layer}" not in name
    ]


def test_every_shipped_layout_is_matched_as_by_expressions() -> None:
    fillings: tuple[dict[str, str], ...] = (
        {},
        {"stack": "a.3.b", "layer": "12"},
        {"expert": "0x", "any": "b.c"},
    )
    for block, rest in shipped_names():
        for filling in fillings:
            fields = {"stack": "model.layers", "layer": "7", "expert": "31", "n": "1", "any": "ff"}
            name = (block + rest).format(**fields | filling)
            for tried in (name, f"x.{name}", f"{name}s", name[:-1], name.replace(".", "_")):
                assert NameTemplate(block, rest).fill(tried) == reference(block, rest, tried)


@pytest.mark.parametrize(
    ("block", "rest"),
    [
        ("{stack}.{layer}", "." + "{any}" * 8 + "!"),
        ("{stack}.{layer}.{any}.{any}.{any}.{any}", ".x"),
        ("{any}{n}{any}{n}{layer}", "{any}!"),
        ("{stack}{layer}", "{n}{n}{n}!"),
        ("{any}.{layer}.{stack}", ".{any}!"),
    ],
)
@pytest.mark.parametrize("letter", ["a", "1", "a.", "1.1"])
def test_no_name_takes_long(block: str, rest: str, letter: str) -> None:
    """Thousands of years with the reference."""
    template = NameTemplate(block, rest)
    with at_most(10):
        assert template.fill("m.0." + letter * 20_000) is None


def entry(block: str, *names: str, router: str = "r") -> Layout:
    experts = {names[0]: "up", names[-1]: "down"} if len(names) > 1 else {names[0]: "down"}
    return Layout.model_validate(
        {"family": "f", "block": block, "experts": experts, "router": router}
    )


@pytest.mark.parametrize(
    ("block", "name", "fact"),
    [
        ("{stack}.{layer}.{layer}", "w", "{layer}"),
        ("{stack}.{layer}", "{stack}.w", "{stack}"),
        ("{stack}.{layer}.{expert}", "{expert}.w", "{expert}"),
        ("{stack}.{layer}", "{any}." * MOST_PLACEHOLDERS, str(MOST_PLACEHOLDERS)),
    ],
)
def test_a_placeholder_too_often_is_refused(block: str, name: str, fact: str) -> None:
    with raises_saying(ValueError, fact):
        NameTemplate(block, f".{name}")
    with pytest.raises(ValueError, match=re.escape(fact)):
        entry(block, name)


def test_a_number_of_too_many_digits_names_no_layer() -> None:
    layout = entry("{stack}.{layer}", "{expert}.w")
    assert layout.match(f"m.{'9' * 18}.0.w") is not None
    assert layout.match(f"m.{'9' * 19}.0.w") is None
    assert layout.match(f"m.0.{'9' * 5000}.w") is None
