"""An analysis as one file: a page, JSON, or the table of groups as Parquet."""

from __future__ import annotations

import os
from pathlib import Path

from ders_core.analysis import Analysis
from ders_core.errors import OutputError
from ders_core.figures import report_html

SUFFIXES = (".html", ".json", ".parquet")


def write_report(analysis: Analysis, path: Path) -> None:
    """Write by the file's ending. Raises OutputError if it exists or the ending is unknown."""
    if path.suffix not in SUFFIXES:
        raise OutputError(f"{path.name}: end the file's name in {', '.join(SUFFIXES)}")
    if path.exists():
        raise OutputError(f"{path} exists already; choose another name or remove it")
    aside = path.with_name(path.name + ".tmp")
    if path.suffix == ".parquet":
        analysis.groups.to_parquet(aside)
    else:
        text = report_html(analysis) if path.suffix == ".html" else analysis.to_json()
        aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
