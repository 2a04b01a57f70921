"""JSON and YAML that anybody may have written: limits, and what is refused within them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load
from support.bounded_time import at_most
from support.messages import raises_saying

import ders_core
from ders_core.errors import CheckpointError
from ders_core.files import untrusted_json, untrusted_yaml
from ders_core.files.header import read_header
from ders_core.files.json_object import read_json
from ders_core.files.untrusted_json import EVERY_KEY, JsonFault, half_character, parse_json
from ders_core.files.untrusted_yaml import (
    YamlFault,
    compose_yaml,
    parse_foreign_yaml,
    parse_yaml,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES, st.booleans())
def test_what_is_written_is_read(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == value
    assert parse_json(text.encode(), once=EVERY_KEY, finite=True) == value


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text("ab: -\n'é1", max_size=8),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text("ab1: é", max_size=4), children, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(PLAIN)
def test_yaml_that_is_written_is_read(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert parse_yaml(text) == parse_foreign_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", ["line 1"]),
        ("{", ["line 1"]),
        ("[" * 100_000, ["deep"]),
        ("[" * 65 + "]" * 65, ["deep", "64"]),
        ('{"a":' * 900 + "1" + "}" * 900, ["deep"]),
        (f'{{"a": {"9" * 41}}}', ["41 digits"]),
        (f"-{'1' * 5000}", ["5001 digits"]),
        ('["\\ud83d"]', ["half of a character", "ud83d"]),
        ('{"\\udc00": 1}', ["half of a character", "udc00"]),
        ('["\ud83d"]', ["half of a character", "ud83d"]),
        (b"\xff\xfe{}", ["utf-8"]),
    ],
)
def test_refused_json(text: str | bytes, facts: list[str]) -> None:
    with raises_saying(JsonFault, *facts), at_most(30):
        parse_json(text)


def test_what_some_readers_refuse_and_others_do_not() -> None:
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with raises_saying(JsonFault, "'a'", "twice"):
        parse_json('{"b": 0, "a": 1, "a": 2}', once=EVERY_KEY)
    assert parse_json("[Infinity]") == [math.inf]
    for word in ("NaN", "Infinity", "-Infinity"):
        with raises_saying(JsonFault, word):
            parse_json(f"[{word}]", finite=True)
    assert parse_json('["\\ud83d\\ude00"]') == ["😀"]
    assert parse_json(f'["{"9" * 5000}"]') == ["9" * 5000]  # digits, but no number
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json(f"[{10**39}]") == [10**39]


def test_limits_of_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(untrusted_json, "MOST_VALUES", 100)
    assert parse_json(str([[]] * 49)) == [[]] * 49
    for text in ("[" + "[]," * 60 + "[]]", json.dumps(list(range(200)))):
        with raises_saying(JsonFault, "100 values"):
            parse_json(text)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"a": "b" * 1000}))
    monkeypatch.setattr("ders_core.files.json_object.MOST_BYTES", 1000)
    with raises_saying(CheckpointError, "config.json", "1000", str(file.stat().st_size)):
        read_json(file)


def laughs(levels: int, width: int = 9) -> str:
    """Each level stands for `width` of the level before."""
    lines = ["l0: &l0 [" + ", ".join("x" * width) + "]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} [" + ", ".join([f"*l{level - 1}"] * width) + "]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "facts"),
    [
        (laughs(10), None, ["100000"]),
        (laughs(30, 2), None, ["100000"]),
        ("a: &a [1, *a]", 1, ["part of"]),
        ("x: 1\nstages: &s {codec: chain, stages: [*s]}", 2, ["part of"]),
        ("? &k {a: *k}\n: 1", 1, ["part of"]),
        ("[" * 5000, 1, ["32 levels"]),
        ("- " * 5000, 1, ["32 levels"]),
        ("a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*a" + "]" * 20, 2, ["32 levels"]),
        ("a: 1\nb: !!int abc", 2, ["'abc'", "int"]),
        ("b: !!bool maybe", 1, ["'maybe'", "bool"]),
        ("b: !!float '.'", 1, ["float"]),
        ("b: !!timestamp soon", 1, ["'soon'", "timestamp"]),
        ("b: !!timestamp 2001-99-99", 1, ["timestamp"]),
        ("b: !!binary x", 1, ["base64"]),
        ("a: !!python/object/apply:os.system [echo]", 1, ["python"]),
        ('a: "\\ud800"', 1, ["half of a character", "ud800"]),
        ("a: \ud800", 1, ["0xd800"]),
        ('a: 1\nb: "\\Uffffffff"', None, []),
        (f"a: {'9' * 5000}", 1, ["9"]),
        (f"a: 0x{'f' * 5000}", 1, ["digits"]),
        ("a: .nan", 1, [".nan"]),
        ("a: -.inf", 1, [".inf"]),
        ("a: 1\nb: 2\na: 3", 3, ["'a'", "line 1"]),
        ("*nobody", 1, ["nobody"]),
        ("a: b\0", 1, ["0x0000"]),
        ("a\n--- b", 2, ["document"]),
        ("a: [", 1, []),
    ],
)
def test_refused_yaml(text: str, line: int | None, facts: list[str]) -> None:
    with raises_saying(YamlFault, *facts), at_most(30):
        parse_yaml(text)
    with pytest.raises(YamlFault) as caught:
        parse_yaml(text)
    if line is not None:
        assert caught.value.line == line


def test_aliases_within_bounds_stand_for_what_they_name() -> None:
    text = f"{laughs(4)}\nbase: &b {{x: 1}}\nmerged: {{<<: *b, y: 2}}\nagain: [*b, *b]"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert compose_yaml(text) is not None


def test_words_that_others_take_for_something_else() -> None:
    text = "pattern: 2:4\nfamily: 2024-01-01\nwhen: 2024-13-45\nnumbers: [0x10, 0b11, 1_000, 1e3]"
    assert parse_yaml(text) == {
        "pattern": "2:4",
        "family": "2024-01-01",
        "when": "2024-13-45",
        "numbers": [16, 3, 1000, "1e3"],
    }
    assert parse_foreign_yaml("a: 1\na: 2024-01-01") == yaml.safe_load("a: 2024-01-01")
    with pytest.raises(YamlFault):
        parse_foreign_yaml("when: 2024-13-45")


def test_a_yaml_text_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted_yaml, "MOST_VALUES", 5)
    assert parse_yaml("[0, 1, 2, 3]") == [0, 1, 2, 3]
    with raises_saying(YamlFault, "5 values"):
        parse_yaml("[0, 1, 2, 3, 4, 5]")
    monkeypatch.setattr(untrusted_yaml, "MOST_CHARACTERS", 10)
    assert parse_yaml("a: 1") == {"a": 1}
    with raises_saying(YamlFault, "10", "12"):
        parse_yaml("a: 123456789")


def test_half_characters() -> None:
    assert half_character("a😀") is None
    assert half_character("a\udc80b") == "\\udc80"


ENTRY = '"dtype": "U8", "shape": [1], "data_offsets": [0, 1]'


@pytest.mark.parametrize(
    "header",
    [
        f'{{"a": {{{ENTRY}}}}}',
        f'{{"a\\ud800": {{{ENTRY}}}}}',
        f'{{"a": {{{ENTRY}}}, "__metadata__": {{"x": "\\udfff"}}}}',
        f'{{"\\ud83d\\ude00": {{{ENTRY}}}}}',
        f'{{"a": {{{ENTRY}, "x": NaN}}}}',
        f'{{"a": {{{ENTRY}, "x": Infinity}}}}',
        f'{{"a": {{{ENTRY}}}, "a": {{{ENTRY}}}}}',
        f'{{"b": {{{ENTRY}}}, "a": 1, "a": {{{ENTRY}}}}}',
        f'{{"a": {{"dtype": "I8", {ENTRY}}}}}',
    ],
)
def test_headers_that_safetensors_own_library_refuses_are_refused(
    tmp_path: Path, header: str
) -> None:
    text = header.encode()
    content = len(text).to_bytes(8, "little") + text + b"\x07"
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    try:
        theirs = set(load(content))
    except SafetensorError:
        with raises_saying(CheckpointError, "a.safetensors"):
            read_header(file)
        return
    assert set(read_header(file)[0]) == theirs


TRUSTED = {
    "files/package_data.py": "what the package itself holds",
    "jobs/job.py": "the workspace's own database",
    "jobs/testing.py": "what it has just written",
    "decompose/testing.py": "what it has just written",
    "analysis/tables.py": "what pandas has just written",
    "upcycle/architecture.py": "what transformers has just written",
}
"""Modules that parse texts which never were a file from outside."""

PARSING = re.compile(r"\b(json\.loads?|yaml\.(safe_load|full_load|load|compose|parse))(_all)?\(")


def test_no_other_module_parses_by_itself() -> None:
    package = Path(ders_core.__file__).parent
    files = [*package.rglob("*.py"), package.parent / "app.py"]
    files += (package.parent / "pages").glob("*.py")
    found = {
        file.relative_to(package.parent).as_posix().removeprefix("ders_core/")
        for file in files
        if PARSING.search(file.read_text(encoding="utf-8"))
    }
    assert found == {*TRUSTED, "files/untrusted_json.py"}
