"""A reply as HTML: its text as it is, with the tokens marked on which the two models disagree."""

from __future__ import annotations

from ders_core.pipeline.replies import Reply, ReplyToken
from ders_core.ui.plain import as_html
from ders_core.units import share_text

MARK = (
    "background:rgba(230,159,0,.28);color:inherit;border-radius:.2rem;"
    "text-decoration:underline;text-decoration-thickness:2px;text-underline-offset:3px"
)
BOX = (
    "white-space:pre-wrap;overflow-wrap:anywhere;font-family:var(--default-mono-font-family,"
    "'Source Code Pro',monospace);font-size:.875rem;line-height:1.6"
)
EMPTY = "◌"
"""Stands for a marked token without a visible part of its own: a part of a character."""


def marked(reply: Reply, other: str) -> str:
    """HTML of the whole reply. other: what the other model is called; each mark tells what it would
    say there to a pointer that rests on it."""
    return _boxed("".join(_part(token, other) for token in reply.tokens))


def unmarked(reply: Reply) -> str:
    """HTML of the whole reply."""
    return _boxed(as_html(reply.text))


def _boxed(text: str) -> str:
    return f'<div style="{BOX}">{text}</div>'


def _part(token: ReplyToken, other: str) -> str:
    if token.other is None:
        return as_html(token.text)
    chances = f"{share_text(token.chance)} here, {share_text(token.other_chance)} there"
    told = f"{other} says {_quoted(token.other)} (this token: {chances})"
    shown = token.text.replace("\n", "↵\n") or EMPTY
    return f'<mark style="{MARK}" title="{as_html(told)}">{as_html(shown)}</mark>'


def _quoted(text: str) -> str:
    """In one line."""
    return f"“{text}”".replace("\n", "↵")
