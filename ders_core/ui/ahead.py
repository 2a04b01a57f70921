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
    """In the order in which a visitor who follows the pages needs them."""
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.cluster.hierarchy  # noqa: F401 (orders the experts on the Redundancy page)

    import ders_core.figures
    import ders_core.ui.frame
    import ders_core.ui.runs  # noqa: F401
