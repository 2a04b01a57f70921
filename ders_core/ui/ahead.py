"""What pages need and takes long to import, imported by the server before anybody asks for it.

Importing it takes longer than all else that a first visitor waits for. A browser that is called
right after the start loads the studio's own code meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


def import_ahead(then: Callable[[], object]) -> None:
    """Start to import, in a thread. then: called once all is there that the first page needs: what
    may take its time, and the cores, only after that."""
    threading.Thread(target=_import, args=(then,), name="imports ahead", daemon=True).start()


def _import(then: Callable[[], object]) -> None:
    """In the order in which a visitor who follows the pages needs them."""
    import PIL.Image  # noqa: F401 (Streamlit looks at the page's icon)

    import ders_core.ui.frame

    then()
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.cluster.hierarchy  # noqa: F401 (orders the experts on the Redundancy page)

    import ders_core.figures
    import ders_core.ui.runs  # noqa: F401
