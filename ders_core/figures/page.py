"""Pages that stand alone: one file, plotly's script in it once, and nothing from another host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from itertools import count

import plotly.graph_objects as go

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem;
color:#0b1218;background:#fff}
table{border-collapse:collapse;font-size:13px}th,td{padding:.25rem .75rem;text-align:right;
border-bottom:1px solid #dde3e8}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
.lead{font-size:1.1rem}.sheet{overflow-x:auto}
table.words td,table.words th{text-align:left;vertical-align:top}
table.words td{max-width:34rem;overflow-wrap:anywhere}
"""


class Page:
    """Parts of a page in their order. What is given as text is escaped; `html` is not."""

    def __init__(self, title: str, heading: str, style: str = "") -> None:
        self._parts = [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>",
            f"<h1>{escape(heading)}</h1>",
        ]
        self._numbers = count(1)  # as names; plotly would draw them, and no two pages be alike

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """kind: a class of the style, "" for none."""
        of_kind = f" class='{kind}'" if kind else ""
        self._parts.append(f"<p{of_kind}>{escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> None:
        """A table of texts, which scrolls where it is wider than the page. kind: as of
        `paragraph`; "words" is for sentences."""
        of_kind = f" class='{kind}'" if kind else ""
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        self._parts.append(
            f"<div class='sheet'><table{of_kind}><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def folded(self, summary: str, text: str) -> None:
        """Text of fixed width that is unfolded by a click."""
        self._parts.append(
            f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
        )

    @contextmanager
    def fold(self, summary: str) -> Iterator[None]:
        """What the block adds is unfolded by a click."""
        self._parts.append(f"<details><summary>{escape(summary)}</summary>")
        yield
        self._parts.append("</details>")

    def figure(self, figure: go.Figure) -> None:
        number = next(self._numbers)
        self._parts.append(
            figure.to_html(full_html=False, include_plotlyjs=number == 1, div_id=f"figure-{number}")
        )

    def html(self, part: str) -> None:
        """A part that is HTML already."""
        self._parts.append(part)

    def text(self) -> str:
        """The whole page."""
        return "\n".join([*self._parts, "</body></html>"])
