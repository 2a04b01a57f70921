"""The code of elements that later pages show, made ready while the browser rests.

Streamlit asks for an element's code when a page shows the element: a first click on a page with
plots then waits for 5 MB to come, to be compiled and to be run once. So the page that is drawn
first does that, one file at a time, whenever the browser has nothing else to do.
"""

from __future__ import annotations

import json
from pathlib import Path

ELEMENTS = (
    "PlotlyChart",
    *("ButtonGroup", "Checkbox", "DataFrame", "DownloadButton", "Multiselect", "NumberInput"),
    *("Progress", "Slider", "TextArea", "TextInput", "StreamlitSyntaxHighlighter"),
)
"""The elements of all pages, by the names of their files, in the order in which they are fetched:
those of the pages that come first, then what takes long and is on the Recipe page."""

AGAIN = 250
"""Milliseconds between two looks at whether a page is drawn; it is if both find it so."""


def script(static: Path) -> str:
    """A script that fetches and runs the code of `ELEMENTS`, once a page is drawn. static:
    Streamlit's folder; what is missing there is left out."""
    folder = static / "js"
    names = [file.name for name in ELEMENTS for file in sorted(folder.glob(f"{name}.*.js"))]
    return f"""{{
const names = {json.dumps(names)};
const drawn = '[data-test-script-state="notRunning"] [data-testid="stMain"] h1';
const arriving = '[data-testid="stSkeleton"], [data-waits]';
const rest = window.requestIdleCallback ?? ((next) => setTimeout(next, {AGAIN}));
const fetchNext = () => {{
    const name = names.shift();
    if (name) import(`./static/js/${{name}}`).catch(() => {{}}).then(() => rest(fetchNext));
}};
const look = (before) => {{
    const now = document.querySelector(drawn) && !document.querySelector(arriving);
    if (before && now) rest(fetchNext);
    else setTimeout(look, {AGAIN}, now);
}};
addEventListener("load", () => look(false));
}}"""
