"""The demo's text: Python's standard library, divided into code, prose and tables."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ders_core.errors import DersError

DOMAINS = ("code", "prose", "tables")
TABLE_FOLDERS = ("encodings",)
TABLE_FILES = ("entities.py", "mimetypes.py", "_pydatetime.py", "stringprep.py", "locale.py")
HELD_OUT_SHARE = 0.08
CALIBRATION_SHARE = 0.08
SEPARATOR = "\n\n"
PIECE = 1500


@dataclass(frozen=True)
class Corpus:
    """Texts by domain. The three parts come from different files."""

    train: dict[str, list[str]]
    calibration: dict[str, list[str]]
    heldout: dict[str, list[str]]


def read_corpus(root: Path | None = None) -> Corpus:
    """Split the library's files by a hash of their names. Raises DersError if there are too few.

    root: a folder of .py files; by default the running Python's standard library.
    """
    folder = root or Path(sysconfig.get_paths()["stdlib"])
    parts: dict[str, dict[str, list[str]]] = {
        name: {domain: [] for domain in DOMAINS} for name in ("train", "calibration", "heldout")
    }
    for file in _files(folder):
        share = _hash_share(file.relative_to(folder).as_posix())
        part = "train"
        if share < HELD_OUT_SHARE:
            part = "heldout"
        elif share < HELD_OUT_SHARE + CALIBRATION_SHARE:
            part = "calibration"
        for domain, text in _split(file):
            parts[part][domain].append(text)
    corpus = Corpus(**parts)
    if not all(texts for part in parts.values() for texts in part.values()):
        raise DersError(f"{folder} holds too little Python source for the demo's text")
    return corpus


def joined(texts: dict[str, list[str]], limit: int) -> str:
    """The domains in turns, a piece of each at a time, so that every stretch of the text has all of
    them; at most `limit` characters in equal shares."""
    each = limit // len(texts)
    joint = {domain: SEPARATOR.join(pieces)[:each] for domain, pieces in texts.items()}
    mixed = SEPARATOR.join(
        text[begin : begin + PIECE]
        for begin in range(0, each, PIECE)
        for text in joint.values()
        if begin < len(text)
    )
    return mixed[:limit]


def _files(folder: Path) -> Iterator[Path]:
    skip = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3"}
    for file in sorted(folder.rglob("*.py")):
        if not skip.intersection(file.relative_to(folder).parts):
            yield file


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") / 2**32


def _split(file: Path) -> Iterator[tuple[str, str]]:
    """(domain, text) pairs of one source file; none if it does not parse."""
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return
    if file.parent.name in TABLE_FOLDERS or file.name in TABLE_FILES:
        yield "tables", source
        return
    prose = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            words = ast.get_docstring(node)
            if words:
                prose.append(words)
                node.body = node.body[1:] or [ast.Pass()]
    if prose:
        yield "prose", SEPARATOR.join(prose)
    yield "code", ast.unparse(ast.fix_missing_locations(tree))
