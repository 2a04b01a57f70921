"""What pages need and takes long to import, imported by the server before anybody asks for it.

Importing it takes longer than all else that a first visitor waits for. A browser that is called
right after the start loads the studio's own code meanwhile.
"""

from __future__ import annotations

import threading


def import_ahead() -> None:
    """Start to import, in a thread."""
    threading.Thread(target=_import, name="imports ahead", daemon=True).start()


def _import() -> None:
    _of_first_page()
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
