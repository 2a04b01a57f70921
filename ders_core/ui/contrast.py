"""Colours for what has too little contrast (below 4.5) with Streamlit's own and our theme."""

from __future__ import annotations

import streamlit as st

STYLE = """
button[kind^="primary"]:not(:disabled) * { color: light-dark(#ffffff, #11161c) }
@media (prefers-color-scheme: dark) { [role="dialog"] { color-scheme: dark } }
[data-testid="stCaptionContainer"] code { color: inherit }
.stCode .token { color: inherit !important }
.stCode .token:is(.keyword, .atrule, .boolean, .number) {
  color: light-dark(#0b5ea8, #6cb6ff) !important
}
.stCode .token:is(.string, .inserted) { color: light-dark(#0a6b2e, #57d17f) !important }
.stCode .token.deleted { color: light-dark(#a3232e, #ff8f8f) !important }
"""
"""Text of primary buttons is white whatever their colour, code in captions is pale, and the colours
of code are of no theme. `light-dark` follows Streamlit's theme, which sets `color-scheme`; what
floats above the page has none, and follows the system, as the theme does."""


def readable() -> None:
    """Put the style into the page."""
    st.html(f"<style>{STYLE}</style>")
