"""Foreign text on pages: names, messages and paths are shown as they are.

Streamlit reads labels, captions, help and messages as Markdown with directives, emoji, icons, math
and arrows of its own. A name from a checkpoint, a recipe or a message must not become a picture
that is fetched, a link, or coloured text. `plain` gives the Markdown that shows a text literally.

Some of Streamlit's replacements are made after Markdown was read, so a backslash does not keep
them off. Where one would match, the text is parted by an empty element.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import streamlit as st

from ders_core.units import shortened, visible

LONGEST = 2000
"""Characters that are shown of a text."""

PART = ":small[]"
"""An element without content."""

_MARK = "\0"
"""Stands for PART until the text is escaped; never in a visible text."""

_PARTED: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    # :smile: :material/home: :streamlit:
    (re.compile(r":(?=[\w+-]+:|material/)"), lambda found: f":{_MARK}"),
    # arrows, dashes and comparisons between blanks
    (
        re.compile(r"(?<!\S)(?:<->|->|<-|--|>=|<=|~=)(?!\S)"),
        lambda found: _MARK.join(found[0]),
    ),
    # addresses become links
    (re.compile(r"(https?)(?=://)|(www)(?=\.)", re.IGNORECASE), lambda found: found[0] + _MARK),
    (re.compile(r"(?<=\S)@(?=\S)"), lambda found: f"{_MARK}@"),
)

_SPECIAL = re.compile(
    r"[\\`*\[\]<>$~|{}]"  # code, emphasis, links, tags, math, strike-through, tables, attributes
    r"|&(?=#|[A-Za-z])"  # entities
    r"|:(?!\s|//)"  # directives and emoji
    r"|(?<![^\W_])_+|_+(?![^\W_])"  # emphasis, but not within a word
    r"|\A\s*[#+=-]|\A\s*\d+[.)]"  # headings, lists, rules
)


def plain(text: object, most: int = LONGEST) -> str:
    """Markdown that shows a text as it is, in one line; longer texts are cut."""
    shown = visible(str(text))
    if len(shown) > most:
        shown = f"{shown[: most - 1]}…"
    for pattern, parted in _PARTED:
        shown = pattern.sub(parted, shown)
    return _SPECIAL.sub(_escaped, shown).replace(_MARK, PART)


def _escaped(found: re.Match[str]) -> str:
    return "".join(char if char.isspace() or char.isdigit() else f"\\{char}" for char in found[0])


def strong(text: object) -> str:
    """The same in bold type."""
    return f"**{plain(str(text).strip()) or '–'}**"


def name(text: str, most: int) -> str:
    """A name in bold type; of a longer one than `most` characters the middle is left out, and the
    pointer is told the whole. For `st.markdown` with HTML."""
    whole = visible(text)
    if len(whole) <= most:
        return strong(whole)
    return f'<span title="{html.escape(whole)}">{strong(shortened(whole, most))}</span>'


def answer_first(sentence: str) -> str:
    """The same with its first words in bold type, which are the answer; what supports them begins
    with a colon, a semicolon, a bracket or the next sentence."""
    found = re.match(r".+?(?=[:;.](?:\s|$)| \()", sentence)
    answer = found[0] if found is not None else sentence
    return strong(answer) + plain(sentence[len(answer) :])


def as_html(text: str) -> str:
    """HTML that shows a text as it is, for `st.html`: lines stay lines, other controls are escaped.
    It may stand in an attribute, too."""
    return "\n".join(html.escape(visible(line)) for line in text.split("\n"))


def show_error(problem: object, before: str = "") -> None:
    """A message in a red box. before: Markdown of our own that it starts with."""
    st.error(before + plain(problem))
