"""Output of the commands: tables or JSON on stdout; progress on stderr, as a bar on a terminal and
as plain lines elsewhere.

rich is imported where a bar is drawn: other commands do not wait for it.
"""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ders_core.compute.progress import Progress as Callback
from ders_core.compute.progress import quiet
from ders_core.units import listed, visible

LINE_SECONDS = 2.0

STARTING = "starting"
"""What is shown while the libraries that do the work are imported, which takes seconds."""


@contextmanager
def progress_bar(title: str, *, hidden: bool = False) -> Iterator[Callback]:
    """A progress callback that draws on stderr, so that stdout holds only results.

    A total of 0 is work whose length is not known yet.
    """
    if hidden:
        yield quiet
        return
    title = visible(title)
    if sys.stderr.isatty():
        with _bar(title) as show:
            yield show
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Callback]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}", style="dim", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, message="")

        def show(done: int, total: int, message: str) -> None:
            bar.update(task, completed=done, total=total or None, message=visible(message))

        yield show


def _lines(title: str) -> Callback:
    last, printed = -LINE_SECONDS, ""

    def show(done: int, total: int, message: str) -> None:
        nonlocal last, printed
        now = time.monotonic()
        share = f" {100 * done / total:3.0f} %" if total else ""
        line = f"{title}:{share} {visible(message)}"
        if line != printed and (now - last >= LINE_SECONDS or done == total):
            last, printed = now, line
            print(line, file=sys.stderr, flush=True)

    return show


def print_json(value: Any) -> None:
    """The output of `--json`. What would command a terminal or turn text around is written as
    escapes of JSON, which mean the same."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("".join(each if each.isprintable() or each == "\n" else _escaped(each) for each in text))


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1]


def print_line(text: str) -> None:
    """A line of results. Names in it come from files and paths: what would command a terminal, or
    end the line, is written as escapes."""
    print(visible(text), flush=True)


def print_links(names: Sequence[str]) -> None:
    """Say which links of a checkpoint were not followed, if there are any."""
    if names:
        print_line(f"left out, as links to files outside of the checkpoint: {listed(names)}")


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """The first three columns are words, aligned left; the others are numbers, aligned right.
    Cells are escaped as lines are."""
    columns, *rows = ([visible(cell) for cell in row] for row in (columns, *rows))
    widths = [max(map(_width, cells)) for cells in zip(columns, *rows, strict=True)]
    for number, row in enumerate([columns, *rows] if any(columns) else rows):
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - _width(cell))
            cells.append(cell + padding if place < 3 else padding + cell)
        line = "  ".join(cells).rstrip()
        is_header = number == 0 and any(columns)
        print(f"\x1b[1m{line}\x1b[0m" if is_header and sys.stdout.isatty() else line)


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
