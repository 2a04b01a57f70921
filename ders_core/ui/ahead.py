"""What pages need and takes long to import, imported by the server before anybody asks for it.

Importing it takes longer than all else that a first visitor waits for. A browser that is called
right after the start loads the studio's own code meanwhile. Until that visitor sees a page, only
what that page needs is imported: threads of one process take turns, and the browser may have no
more than one core left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

VISITOR = 10.0
"""Seconds for which a first visitor is waited for before the rest is imported."""

_drawn = threading.Event()
"""Set once the server has drawn a page."""


def import_ahead(then: Callable[[], object]) -> None:
    """Start to import, in a thread. then: called in it once the first page can be drawn;
    if it raises, the rest is imported all the same."""
    threading.Thread(target=_import, args=(then,), name="imports ahead", daemon=True).start()


def page_was_drawn() -> None:
    """The visitor waits no more."""
    _drawn.set()


def _import(then: Callable[[], object]) -> None:
    _of_first_page()
    try:
        then()
    finally:
        _drawn.wait(VISITOR)
        _of_other_pages()


def _of_first_page() -> None:
    """All that it needs while nothing is open: a visitor may come while this goes on."""
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401 (Streamlit looks whether the page's icon is one)

    import ders_core.ui.composition
    import ders_core.ui.frame  # noqa: F401


def _of_other_pages() -> None:
    """In the order in which a visitor who follows the pages needs them."""
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.cluster.hierarchy  # noqa: F401 (joins the experts on the Redundancy page)

    import ders_core.figures
    import ders_core.ui.runs  # noqa: F401
