"""Silence transformers for a block of code."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import transformers

_lock = threading.RLock()
"""The verbosity of transformers is one setting of the process; one thread changes it at a time."""


@contextmanager
def silent() -> Iterator[None]:
    """No progress bars and warnings from transformers in the block. Threads wait for each other."""
    logging = transformers.logging
    with _lock:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        if bars:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
