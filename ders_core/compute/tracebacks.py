"""What the traceback of an error keeps: the functions that it left, and all that they held."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_goes_back() -> Iterator[None]:
    """Let go of what an error's tracebacks hold, before it leaves the block: large tensors would
    stay until somebody has dealt with the error, and longer where a thread raised it, whose future
    it keeps and is kept by."""
    try:
        yield
    except BaseException as error:
        raised: BaseException | None = error
        while raised is not None:
            traceback.clear_frames(raised.__traceback__)
            raised = raised.__cause__ or raised.__context__
        raise
