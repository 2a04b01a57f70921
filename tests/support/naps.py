"""A task for other processes, in a file that imports nothing: they start sooner."""

from __future__ import annotations

import time


def nap(number: int) -> int:
    """Return the number, after a moment."""
    time.sleep(0.1)
    return number
