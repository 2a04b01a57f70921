"""A key that is there twice: refused with both lines, in every YAML file that people write."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.checkpoint.layouts import read_layouts
from ders_core.codecs import Quantized
from ders_core.errors import CheckpointError, RecipeError
from ders_core.recipe import Recipe, load_recipe
from ders_core.upcycle import UpcycleConfig, load_config

TOP = "version: 1\nname: x\nname: y\nrules:\n  - {codec: keep}\n"
INLINE = "version: 1\nname: x\nrules:\n  - {codec: quantized, bits: 4, bits: 2}\n"
QUOTED = "version: 1\n'name': x\nrules: []\n\"name\": y\n"
DEEP = "version: 1\nname: x\nrules:\n  - codec: quantized\n    bits: 4\n    codec: keep\n"


@pytest.mark.parametrize(
    ("text", "line", "facts"),
    [
        (TOP, 3, ["line 3", "'name'", "line 2"]),
        (INLINE, 4, ["line 4", "'bits'", "same line"]),
        (QUOTED, 4, ["line 4", "'name'", "line 2"]),
        (DEEP, 6, ["line 6", "'codec'", "line 4"]),
    ],
)
def test_a_recipe(text: str, line: int, facts: list[str], tmp_path: Path) -> None:
    with raises_saying(RecipeError, *facts):
        Recipe.from_yaml(text)
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert caught.value.line == line
    assert "mine.yaml" in str(caught.value)


def test_an_upcycling_configuration() -> None:
    text = "name: x\nexperts: 4\ndata: {texts: a.txt}\nexperts: 8\n"
    with raises_saying(RecipeError, "line 4", "'experts'", "line 2"):
        UpcycleConfig.from_yaml(text)


def test_a_layout(tmp_path: Path) -> None:
    file = tmp_path / "ders_layout.yaml"
    file.write_text("family: mine\nblock: a\nfamily: yours\n", encoding="utf-8")
    with raises_saying(CheckpointError, file, "'family'", "line 3"):
        read_layouts(file)


def test_what_is_merged_in_may_be_set_again() -> None:
    text = (
        "version: 1\nname: x\nrules:\n  - &first {codec: quantized, bits: 4}\n"
        "  - {<<: *first, bits: 2, layers: '1'}\n  - {<<: *first, layers: '2'}\n"
    )
    codecs = [rule.codec for rule in Recipe.from_yaml(text).rules]
    assert codecs == [Quantized(bits=4), Quantized(bits=2), Quantized(bits=4)]


def test_files_as_editors_write_them(tmp_path: Path) -> None:
    text = "version: 1\nname: x\nrules:\n  - {codec: quantized, bits: 4}\n"
    file = tmp_path / "mine.yaml"
    for content in (text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode()):
        file.write_bytes(content)
        assert load_recipe(file) == Recipe.from_yaml(text)
    for content in (text.encode("utf-16"), b"# Gr\xf6\xdfe\n" + text.encode()):
        file.write_bytes(content)
        with raises_saying(RecipeError, file, "UTF-8"):
            load_recipe(file)
    with raises_saying(RecipeError, tmp_path, "cannot be read"):
        load_config(tmp_path)
    with raises_saying(RecipeError, tmp_path / "absent.yaml", "does not exist"):
        load_config(tmp_path / "absent.yaml")
    with raises_saying(RecipeError, f"give {file}", "quotes"):
        load_recipe(f"'{file}'")
