"""One reader of texts: every form that people have, and what is refused in one sentence."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.any_tensors import FILES
from support.messages import raises_saying

from ders_core.errors import EvaluationError
from ders_core.files.texts import Document, check_texts, read_documents, text_files

Write = Callable[[str, bytes | str], Path]

TEXT = "Grüße.\nThe river runs past the mill,\n\nand 麦 is milled.\n"
CHAT = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Thirteen."}]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def texts_of(*paths: Path) -> list[str | None]:
    return [document.text for document in read_documents(paths)]


def lines(*entries: Any) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_are_no_part_of_a_text(write: Write, mark: bytes, end: str) -> None:
    written = TEXT.replace("\n", end)
    plain = write("a.txt", mark + written.encode())
    as_lines = write("a.JSONL", mark + (json.dumps({"text": written}) + end).encode())
    assert texts_of(plain) == texts_of(as_lines) == [TEXT]


@FILES
@given(texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5))
def test_every_text_survives_a_line_of_json(texts: list[str], tmp_path: Path) -> None:
    """Characters that end a line elsewhere in Unicode do not end one here."""
    path = tmp_path / "any.jsonl"
    content = lines(*({"text": text} for text in texts))
    path.write_bytes(content.encode())
    wanted = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    if any(text.strip() for text in wanted):
        assert texts_of(path) == wanted
    else:
        with raises_saying(EvaluationError, path, "no text"):
            texts_of(path)


def test_empty_lines_are_passed_over_and_lines_are_counted_with_them(write: Write) -> None:
    path = write("a.jsonl", '{"text": "one"}\r\n\r\n \r\n{"text": "two"}\r\n\r\n')
    assert [(found.line, found.text) for found in read_documents(path)] == [(1, "one"), (4, "two")]


def test_chats_of_both_forms_are_one(write: Write) -> None:
    shared = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Thirteen."}]
    path = write(
        "a.jsonl",
        lines({"messages": CHAT}, {"conversations": shared}, {"conversations": CHAT, "id": 3}),
    )
    assert [list(found.messages) for found in read_documents(path)] == [CHAT, CHAT, CHAT]
    system = [{"from": "system", "value": "Be brief.\r\n"}, *shared]
    path = write("b.jsonl", lines({"conversations": system}))
    (document,) = read_documents(path)
    assert document.messages[0] == {"role": "system", "content": "Be brief.\n"}


def test_content_in_parts_and_calls_of_tools_stay(write: Write) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Look:\r\n"}, {"type": "image"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "count"}]},
    ]
    (document,) = read_documents(write("a.jsonl", lines({"messages": messages})))
    assert document.messages[0]["content"] == [
        {"type": "text", "text": "Look:\n"},
        {"type": "image"},
    ]
    assert document.messages[1]["tool_calls"] == [{"name": "count"}]


def test_directories_are_read_in_the_order_of_names(write: Write, tmp_path: Path) -> None:
    write("d/b.txt", "second")
    write("d/a.txt", "first")
    write("d/c/z.jsonl", lines({"text": "third"}, {"text": "fourth"}))
    write("d/empty.txt", "")
    write("d/.hidden", b"\xff")
    other = write("e.txt", "last")
    wanted = ["first", "second", "third", "fourth", "", "last"]
    assert texts_of(tmp_path / "d", other) == wanted
    assert [path.name for path in text_files([tmp_path / "d", other])] == [
        *("a.txt", "b.txt", "z.jsonl", "empty.txt", "e.txt")
    ]


def test_linked_files_are_read_and_linked_directories_are_not(write: Write, tmp_path: Path) -> None:
    file = write("else/a.txt", "linked")
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "link.txt").symlink_to(file)
    (folder / "round").symlink_to(folder)
    assert texts_of(folder) == ["linked"]


def test_a_name_of_the_home_is_understood(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.txt", "text")
    monkeypatch.setenv("HOME", str(path.parent))
    assert list(read_documents("~/a.txt")) == [Document(path, None, "text")]


REFUSED: list[tuple[str, bytes, list[str]]] = [
    ("latin.txt", "Größe".encode("latin-1"), ["not UTF-8", "byte 2", "0xf6"]),
    ("u16.txt", TEXT.encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
    ("u16be.txt", b"\xfe\xff" + TEXT.encode("utf-16-be"), ["UTF-16"]),
    ("bare16.txt", "plain".encode("utf-16-le"), ["not text", "byte 1", "UTF-16"]),
    ("u32.txt", TEXT.encode("utf-32"), ["UTF-32"]),
    ("data.parquet", b"PAR1\x15\x00\x15", ["not text", "byte 5"]),
    ("empty.txt", b"", ["no text"]),
    ("blank.txt", b"\n \r\n\t\n", ["no text"]),
    ("mark.txt", b"\xef\xbb\xbf", ["no text"]),
    ("blank.jsonl", b"\n\n", ["no text"]),
    ("blanks.jsonl", b'{"text": " "}\n', ["no text"]),
    ("broken.jsonl", b'{"text": "a"}\n\n{broken\n', ["line 3", "not JSON"]),
    ("keys.jsonl", b'{"text": "a"}\n{"prompt": "a"}\n', ["line 2", '"text"', '"messages"']),
    ("list.jsonl", b'["a"]\n', ["line 1", '"text"', '"messages"']),
    ("number.jsonl", b'{"text": 3}\n', ["line 1", '"text"']),
    ("deep.jsonl", b"[" * 200_000 + b"\n", ["line 1", "not JSON"]),
    ("half.jsonl", b'{"text": "a \\ud83d"}\n', ["line 1", "half of a character", "ud83d"]),
    ("nobody.jsonl", b'{"messages": []}\n', ["line 1", "messages", "empty"]),
    ("mute.jsonl", b'{"messages": [{"role": "user"}]}\n', ["line 1", "message 1", '"role"']),
    ("odd.jsonl", b'{"conversations": [{"from": 3, "value": "a"}]}\n', ["line 1", "message 1"]),
    ("text.jsonl", b'{"messages": ["hello"]}\n', ["line 1", "message 1"]),
    ("whole.json", b'[{"text": "a"}]', [".jsonl", '"text"']),
]


@pytest.mark.parametrize(("name", "content", "facts"), REFUSED, ids=[case[0] for case in REFUSED])
def test_anything_else_is_one_sentence(
    write: Write, name: str, content: bytes, facts: list[str]
) -> None:
    path = write(f"d/{name}", content)
    for place in (path, path.parent):
        named = path if place == path or facts != ["no text"] else path.parent
        with raises_saying(EvaluationError, named, *facts):
            check_texts(place)


def test_places_without_a_text(write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write("a.txt", "text")
    nul, long = "a\0b", "x" * 5000
    cases: list[tuple[Any, list[str]]] = [
        (tmp_path / "absent.txt", ["absent.txt", "No such file"]),
        (f"'{tmp_path / 'a.txt'}'", ["No such file", f"{tmp_path / 'a.txt'} does", "quotes"]),
        (tmp_path / "folder", ["folder", "no text"]),
        ([tmp_path / "a.txt", tmp_path / "folder"], ["folder", "no text"]),
        (nul, ["cannot be read", "null"]),
        (long, ["cannot be read", "too long"]),
        ([], ["no text is named"]),
    ]
    for place, facts in cases:
        for read in (check_texts, text_files) if facts[-1] != "no text" else (check_texts,):
            with raises_saying(EvaluationError, *facts):
                read(place)


def test_a_file_that_may_not_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.txt", "text")

    def refused(_: Path) -> bytes:  # the mode alone would not stop root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with raises_saying(EvaluationError, path, "Permission denied"):
        check_texts(path)
