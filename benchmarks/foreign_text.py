"""Text that a small English model does not know well: German and French manual pages, and the
docstrings of Python's standard library, as three texts that share no page and no file.

A page falls into a text by a hash of its name, so that a page and its translation fall into one.
"""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path

from manual_page import is_manual_page, plain_text

from ders_core.demo.corpus import SEPARATOR, read_corpus

MANUAL = Path("/usr/share/man")
LANGUAGES = ("de", "fr")
SHARES = {"train": 0.6, "calib": 0.2, "held": 0.2}
CHARACTERS = {"train": 600_000, "calib": 240_000, "held": 240_000}
PIECE = 1500
"""Characters of one page or file that stand together; then comes another one."""
LEAST_PAGE, LEAST_PIECE = 500, 300


def foreign_texts() -> dict[str, str]:
    """The texts by the names in `SHARES`. Raises SystemExit without the manual pages."""
    return {
        part: _in_turns(list(sources.values()), CHARACTERS[part])
        for part, sources in _sources().items()
    }


def foreign_texts_by_source() -> dict[str, dict[str, str]]:
    """Of each part, the text of each language and of the docstrings. Raises SystemExit likewise."""
    return {
        part: {kind: _in_turns([each], CHARACTERS[part]) for kind, each in sources.items()}
        for part, sources in _sources().items()
    }


def _sources() -> dict[str, dict[str, list[str]]]:
    """Part -> language -> documents."""
    library = read_corpus()
    docstrings = {
        "train": library.train["prose"],
        "calib": library.calibration["prose"],
        "held": library.heldout["prose"],
    }
    pages = {language: dict(_pages(language)) for language in LANGUAGES}
    bounds = pairwise(accumulate(SHARES.values(), initial=0.0))
    return {
        part: {
            **{language: _between(named, *bound) for language, named in pages.items()},
            "docstrings": docstrings[part],
        }
        for part, bound in zip(SHARES, bounds, strict=True)
    }


def _pages(language: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each manual page of a language."""
    files = sorted((MANUAL / language).glob("man*/*.gz"), key=lambda file: file.name)
    if not files:
        raise SystemExit(
            f"{MANUAL / language} holds no manual pages; install a Debian package that brings "
            "them, such as man-db and dpkg, without excluding its documentation"
        )
    for file in files:
        roff = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
        text = plain_text(roff) if is_manual_page(roff) else ""
        if not file.is_symlink() and len(text) >= LEAST_PAGE:
            yield file.name, text


def _between(pages: dict[str, str], begin: float, end: float) -> list[str]:
    """The pages whose names have a hash in [begin, end)."""
    return [page for name, page in pages.items() if begin <= _hash_share(name) < end]


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") / 2**32


def _in_turns(sources: list[list[str]], limit: int) -> str:
    """Pieces of the sources by turns, each source's in an order drawn at random."""
    pieces = [list(_cut(source)) for source in sources]
    for cut in pieces:
        random.Random(0).shuffle(cut)
    turns = zip(*pieces, strict=False)
    return SEPARATOR.join(piece for turn in turns for piece in turn)[:limit]


def _cut(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        for begin in range(0, len(document), PIECE):
            if len(document) - begin >= LEAST_PIECE:
                yield document[begin : begin + PIECE]
