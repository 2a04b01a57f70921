"""Fields that several forms of the Tune page have."""

from __future__ import annotations

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.ui import kept

NAMED_TEXTS = "files or directories, one a line, perhaps as NAME=PATH"


def friendly_toggle(key: str) -> bool:
    """Whether only forms are taken that hardware decodes easily."""
    return kept.field(
        st.toggle,
        "Hardware-friendly forms only",
        key=key,
        start=False,
        help="Codes of one width, N:M patterns and low rank, which hardware decodes easily.",
    )


def text_lines(
    source: Checkpoint, label: str, key: str, *, placeholder: str, help: str, start: str = ""
) -> str:
    """Lines that belong to the open checkpoint. start: what stands there at first."""
    return kept.field(
        st.text_area,
        label,
        key=key,
        start=start,
        of=source.path,
        placeholder=placeholder,
        help=help,
        height=90,
    )


def token_count(label: str, key: str, start: int) -> int:
    """A number of tokens, at least 256. start: until a person changes it."""
    chosen: int = kept.field(
        st.number_input,
        label,
        key=key,
        start=start,
        min_value=256,
        max_value=1_000_000,
        step=1024,
        width=190,
    )
    return int(chosen)
