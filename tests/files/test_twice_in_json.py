"""Keys that are there twice are found whatever they look like, though objects are asked one by one
only where there may be some."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ders_core.files import untrusted_json
from ders_core.files.untrusted_json import EVERY_KEY, JsonFault, parse_json

KEYS = st.sampled_from(["a", "b", ":", '":', "a\\", "é", " :", '"', "A"])


def one_by_one(text: str, once: Container[str]) -> Any:
    """The reference: each object is asked."""

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if any(names.count(name) > 1 and name in once for name in names):
            raise JsonFault("twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=fields)


@st.composite
def texts(draw: st.DrawFn, depth: int = 3) -> str:
    """JSON in which keys are repeated, escaped in another way, or stand before spaces."""
    if not depth or draw(st.booleans()):
        return json.dumps(draw(KEYS | st.integers(0, 9)))
    if draw(st.integers(0, 3)) == 0:
        return "[" + ",".join(draw(st.lists(texts(depth - 1), max_size=2))) + "]"
    fields = []
    for key in draw(st.lists(KEYS, max_size=3)):
        name = json.dumps(key, ensure_ascii=draw(st.booleans()))
        if draw(st.booleans()):
            name = name.replace("a", "\\u0061")
        fields.append(
            f"{name}{draw(st.sampled_from(['', ' ', chr(10) + ' ']))}:{draw(texts(depth - 1))}"
        )
    return "{" + ", ".join(fields) + "}"


@given(text=texts(), once=st.sampled_from([EVERY_KEY, ("a",), (":", '"')]))
def test_they_are_found_as_one_by_one(text: str, once: Container[str]) -> None:
    try:
        wanted = one_by_one(text, once)
    except JsonFault:
        with pytest.raises(JsonFault, match="twice"):
            parse_json(text, once=once)
        with pytest.raises(JsonFault, match="twice"):
            parse_json(text.encode(), once=once)
    else:
        assert parse_json(text, once=once) == parse_json(text.encode(), once=once) == wanted


@pytest.mark.parametrize("spaces", [None, 2])
def test_objects_without_any_are_not_asked(
    spaces: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an object was asked")

    value = {
        f"model.{n}": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, n]} for n in range(9)
    }
    monkeypatch.setattr(untrusted_json, "_object", never)
    assert parse_json(json.dumps(value, indent=spaces), once=EVERY_KEY) == value
