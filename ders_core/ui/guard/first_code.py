"""The code of elements that a first page shows, named in Streamlit's page.

Streamlit asks for an element's code when it has heard of the element: after all else was loaded and
the server has answered. A browser that reads these names fetches it meanwhile.
"""

from __future__ import annotations

import re
from pathlib import Path

ELEMENTS = ("Html", "Selectbox", "Button")
"""The elements of the page on which nothing is open, by the names of their files."""

_IMPORTED = re.compile(r"""(?:from|import)\s*["']\./([\w.-]+\.js)["']""")


def links(static: Path) -> str:
    """HTML that lets a browser fetch the code of `ELEMENTS`, and what that imports. static:
    Streamlit's folder; what is missing there is left out."""
    scripts = static / "js"
    waiting = [file.name for name in ELEMENTS for file in sorted(scripts.glob(f"{name}.*.js"))]
    found: dict[str, None] = {}
    while waiting:
        name = waiting.pop()
        if name not in found and (scripts / name).is_file():
            found[name] = None
            waiting += _IMPORTED.findall((scripts / name).read_text(encoding="utf-8"))
    page = (static.parent / "index.html").read_text(encoding="utf-8")
    return "".join(
        f'<link rel="modulepreload" crossorigin href="./static/js/{name}">'
        for name in found
        if name not in page
    )
