"""Where two chosen experts differ, read from their weights while the page waits."""

from __future__ import annotations

from collections import OrderedDict

import streamlit as st

from ders_core import figures
from ders_core.analysis.pair_difference import PairDifference
from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.files.address import is_remote
from ders_core.ui.calculations import pair_parts
from ders_core.ui.calculator import calculate
from ders_core.ui.plain import plain, show_error
from ders_core.ui.plots import live_plot
from ders_core.units import bytes_text, share_text

MOST_KEPT = 64
"""Pairs that are remembered."""

Key = tuple[str, int, str, int, int]


@st.cache_resource(show_spinner=False)
def _known() -> OrderedDict[Key, PairDifference]:
    return OrderedDict()


def where_they_differ(
    source: Checkpoint, layer: int, projection: str, first: int, second: int
) -> None:
    """A map of the pair's blocks, rows and columns, and a sentence. Experts at an address are read
    once a button asks for it: their bytes must come over the network."""
    key = (source.store.version, layer, projection, first, second)
    picture = st.container()  # first: the picture of an earlier pair stays there until then
    found = _known().get(key) or _read(source, key)
    if found is None:
        return
    with picture:
        if found.total:  # of two that are the same there is nothing to draw
            live_plot(
                figures.pair_blocks(found, first, second),
                "pair_blocks",
                figures.pair_table(found),
                alt="Blocks of the matrix; colour shows how much "
                f"E{first} and E{second} differ there",
                of=source.path,
            )
        st.caption(_sentence(found, first, second))


def _read(source: Checkpoint, key: Key) -> PairDifference | None:
    """The difference; None where it is not asked for, or cannot be read, and then the page says
    why."""
    version, layer, projection, first, second = key
    group = source.group(layer, projection)
    nbytes = 2 * group.nbytes // len(group.experts)
    if is_remote(source.path) and not st.button(
        f"Read both experts ({bytes_text(nbytes)})",
        key="pair_read",
        help="Shows in which rows, columns and blocks the two differ.",
    ):
        return None
    bar = st.progress(0.0, "Reading two experts")

    def show(done: int, total: int, words: str) -> None:
        bar.progress(done / total if total else 0.0, plain(words))

    try:
        found = calculate(
            pair_parts, source.place, version, layer, projection, first, second, progress=show
        )
    except DersError as error:
        show_error(error)
        return None
    finally:
        bar.empty()
    known = _known()
    known[key] = found
    while len(known) > MOST_KEPT:
        known.popitem(last=False)
    return found


def _sentence(found: PairDifference, first: int, second: int) -> str:
    if not found.total:
        return f"E{first} and E{second} are the same here, number for number."
    row, column = int(found.rows.argmax()), int(found.columns.argmax())
    of_rows, of_columns = (share_text(found.share_of(side)) for side in (found.rows, found.columns))
    return (
        f"‖E{first} − E{second}‖ is {share_text(found.ratio)} of the larger norm. The 1 % of rows "
        f"that differ most hold {of_rows} of ‖E{first} − E{second}‖², of columns {of_columns} (1 % "
        f"if it were even). Most differ row {row} and column {column}."
    )
