"""Texts that people have, read as documents: plain files, JSONL, directories, or several of them.

A file that ends in `.jsonl` or `.ndjson` has a JSON object in each line: a document `text`, or a
chat under `messages` or `conversations`. Any other file is one document of UTF-8 text, with a byte
order mark or without. Line ends become `\\n`. Of a directory every file is read, and those of the
directories below, in the order of their names; hidden names and links to directories are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.errors import EvaluationError
from ders_core.files.inputs import hold_files
from ders_core.files.missing import advice, local_path, printable
from ders_core.files.untrusted_json import JsonFault, parse_json

Texts = str | Path | Sequence[str | Path]
"""A path, or several: files and directories."""

LINES_SUFFIXES = (".jsonl", ".ndjson")
CHAT_KEYS = ("messages", "conversations")
SHARE_ROLES = {"human": "user", "gpt": "assistant"}
"""The names of roles in ShareGPT's form, which has `from` and `value` in each message."""

MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks of what is text, but not UTF-8."""

EXAMPLE = '{"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True)
class Document:
    """A text, or a chat.

    line: its number in a file of several documents; None if it is the whole file. text: None for a
    chat. messages: each with `role` and `content`; empty for a text.
    """

    file: Path
    line: int | None = None
    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return _place(self.file, self.line)


def as_paths(texts: Texts) -> tuple[Path, ...]:
    """The paths, with ~ expanded. Raises EvaluationError if there is none."""
    places = [texts] if isinstance(texts, str | Path) else list(texts)
    if not places:
        raise EvaluationError("no text is named; give a file or a directory")
    return tuple(local_path(place, EvaluationError) for place in places)


def read_documents(texts: Texts) -> Iterator[Document]:
    """The documents of the files, one after another; reads a file when its first one is asked for.

    Raises EvaluationError for a path that cannot be read, a file that is not UTF-8 text, a line
    that is not a document, and a path without any text.
    """
    for path in as_paths(texts):
        blank = True
        for file in _files(path):
            for document in _documents(file):
                blank = blank and not (document.messages or (document.text or "").strip())
                yield document
        if blank:
            raise EvaluationError(f"{path} holds no text; give a file or a directory with some")


def check_texts(texts: Texts) -> None:
    """Read everything once, before long work that uses it at its end. Raises EvaluationError."""
    for _ in read_documents(texts):
        pass


def text_files(texts: Texts) -> list[Path]:
    """The files that the paths stand for; nothing is read.

    Raises EvaluationError for a path that does not exist or a directory that cannot be read.
    """
    return [file for path in as_paths(texts) for file in _files(path)]


def _files(path: Path) -> Iterator[Path]:
    try:
        if not path.is_dir():
            path.stat()
            yield path
            return
        with os.scandir(path) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(path / entry.name)
            elif entry.is_file():
                yield path / entry.name
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _documents(file: Path) -> Iterator[Document]:
    suffix = file.suffix.lower()
    if suffix == ".json":
        raise EvaluationError(
            f"{file} is one JSON document, which is not read as text; write its texts or chats as "
            f"a .jsonl file, one in a line: {EXAMPLE}"
        )
    text = _decoded(file)
    if suffix not in LINES_SUFFIXES:
        yield Document(file, None, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _document(line, file, number)


def _decoded(file: Path) -> str:
    """The text of a file, with `\\n` at the ends of lines."""
    try:
        hold_files([file])
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    mark = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if mark is not None:
        raise EvaluationError(f"{file} is {mark} text; save it as UTF-8")
    zero = content.find(0)
    if zero >= 0:
        raise EvaluationError(
            f"{file} is not text: its byte {zero} is zero, as in binary files and in UTF-16; give "
            "UTF-8 text or a .jsonl file"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{file} is not UTF-8 text: its byte {error.start} is {content[error.start]:#04x}; "
            "save it as UTF-8, or give another file"
        ) from error
    return _lines(text)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _document(written: str, file: Path, line: int) -> Document:
    where = _place(file, line)
    try:
        entry = parse_json(written)
    except JsonFault as error:
        raise EvaluationError(f"{where} is not JSON: {error}") from error
    if isinstance(entry, dict):
        if isinstance(entry.get("text"), str):
            return Document(file, line, _lines(entry["text"]))
        for key in CHAT_KEYS:
            if isinstance(entry.get(key), list):
                return Document(file, line, None, _messages(entry[key], f"{where}, {key}"))
    raise EvaluationError(
        f"{where} has neither a text nor messages; each line is such as {EXAMPLE}"
    )


def _messages(entries: list[Any], where: str) -> tuple[Mapping[str, Any], ...]:
    if not entries:
        raise EvaluationError(f"{where} is empty; remove the line")
    return tuple(_message(entry, where, number) for number, entry in enumerate(entries, 1))


def _message(entry: Any, where: str, number: int) -> Mapping[str, Any]:
    """One message with `role` and `content`, whichever form it is written in."""
    if isinstance(entry, dict) and "role" not in entry and "from" in entry:
        shared = {key: value for key, value in entry.items() if key not in ("from", "value")}
        role = entry["from"]
        role = SHARE_ROLES.get(role, role) if isinstance(role, str) else role
        entry = shared | {"role": role, "content": entry.get("value")}
    content = entry.get("content") if isinstance(entry, dict) else None
    called = isinstance(entry, dict) and content is None and bool(entry.get("tool_calls"))
    parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("role"), str)
        or not (isinstance(content, str) or parts or called)
    ):
        raise EvaluationError(
            f"{where}: message {number} has no role and content; each is such as "
            '{"role": "user", "content": "..."}'
        )
    whole: dict[str, Any] = _each_text(entry)
    return whole


def _each_text(value: Any) -> Any:
    """A JSON value with `\\n` at the ends of lines in every text in it."""
    if isinstance(value, str):
        return _lines(value)
    if isinstance(value, list):
        return [_each_text(item) for item in value]
    if isinstance(value, dict):
        return {key: _each_text(item) for key, item in value.items()}
    return value


def _place(file: Path, line: int | None) -> str:
    return str(file) if line is None else f"{file}, line {line}"


def _unreadable(path: Path, error: Exception) -> EvaluationError:
    reason = getattr(error, "strerror", None) or error
    more = f"; {advice(path)}" if isinstance(error, FileNotFoundError) else ""
    return EvaluationError(f"{printable(path)} cannot be read: {reason}{more}")
