"""Sealed JSON files: what they hold, byte for byte, and that no change of a byte passes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ders_core.files.sealed import read_sealed, write_sealed

VALUES: list[dict[str, Any]] = [
    {},
    {"name": "größer", "numbers": [1, 2.5, None, True], "deeper": {"seal": "no", "empty": {}}},
    {"text": 'a line\n  "seal": "of a string"\n}\n'},
]


@pytest.mark.parametrize("value", VALUES)
def test_the_seal_is_the_hash_of_the_text_without_it(tmp_path: Path, value: dict[str, Any]) -> None:
    write_sealed(tmp_path / "note.json", value)
    entries = json.dumps(value, ensure_ascii=False)[:-1]
    seal = hashlib.sha256((entries + "\n}\n" if value else "{}\n").encode()).hexdigest()
    expected = entries + ("," if value else "") + f'\n  "seal": "{seal}"\n}}\n'
    assert (tmp_path / "note.json").read_text(encoding="utf-8") == expected
    assert json.loads(expected) == value | {"seal": seal}
    assert read_sealed(tmp_path / "note.json") == value


@pytest.mark.parametrize("value", VALUES)
def test_what_earlier_versions_sealed_is_read(tmp_path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    sealed = value | {"seal": hashlib.sha256(text.encode()).hexdigest()}
    note = tmp_path / "note.json"
    note.write_text(json.dumps(sealed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_sealed(note) == value


@pytest.mark.parametrize("value", VALUES)
def test_a_file_with_another_byte_is_none(tmp_path: Path, value: dict[str, Any]) -> None:
    note = tmp_path / "note.json"
    write_sealed(note, value)
    content = note.read_bytes()
    for place in range(len(content)):
        for byte in {content[place] ^ 1, ord(" "), ord("}")} - {content[place]}:
            note.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            assert read_sealed(note) is None
        note.write_bytes(content[:place])
        assert read_sealed(note) is None
        note.write_bytes(content[:place] + content[place + 1 :])
        assert read_sealed(note) is None


def test_no_file_and_no_seal_are_none(tmp_path: Path) -> None:
    assert read_sealed(tmp_path / "none.json") is None
    for text in ("{}\n", '{\n  "a": 1\n}\n', "[]", '{"seal": "0"}'):
        (tmp_path / "note.json").write_text(text)
        assert read_sealed(tmp_path / "note.json") is None
