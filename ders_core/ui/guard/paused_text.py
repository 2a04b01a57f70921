"""A long text is told while it is typed, whenever its typist pauses.

Streamlit tells the text of a large field once the field is left. Who reloads the page before that,
or closes it, would lose all that was typed.
"""

from __future__ import annotations

PAUSE = 1500
"""Milliseconds without a key after which a text is told."""

SCRIPT = f"""{{
let timer = 0;
const wait = (event) => {{
    clearTimeout(timer);
    const field = event.target;
    if (event.isComposing || !field.matches?.('[data-testid="stTextArea"] textarea')) return;
    if (field.closest('[data-testid="stForm"]')) return;
    timer = setTimeout(() => {{
        if (document.activeElement !== field) return;
        field.dispatchEvent(
            new KeyboardEvent("keydown", {{key: "Enter", ctrlKey: true, bubbles: true}})
        );
    }}, {PAUSE});
}};
addEventListener("input", wait, true);
addEventListener("compositionend", wait, true);
}}"""
"""Ctrl and Enter tell a text without leaving its field; in a form they would send the form. The
last `input` of a word that an input method composes comes before the word's end."""
