"""transformers, silent for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import transformers

_lock = threading.RLock()
"""How loud transformers is, is one setting of the whole process, so one thread has it at a time."""


@contextmanager
def silent() -> Iterator[None]:
    """No bars and no advice from transformers; what matters is raised. Threads wait."""
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
