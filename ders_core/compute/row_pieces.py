"""Work on the rows of a matrix, shared out to threads that stay."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from ders_core.compute.threads import available_threads, each_piece, is_helped

LEAST = 1 << 20
"""Values of a matrix times inputs from which on it pays to wake another thread."""

TO_HELP = 8
"""How many pieces there are where threads may come to help."""


def by_row_pieces(
    work: Callable[[int, int], None], rows: int, values: int, *, multiple: int = 1
) -> None:
    """Call `work(first, last)` for pieces that make up the rows, at once where it pays: in as many
    threads as there are, or, in one of several, in those that help it (`threads.each_piece`). Every
    row is worked on by one thread alone, so that the pieces change no result.

    values: how many there are in all rows, times the inputs they meet. multiple: what the rows of
    all pieces but the last are a multiple of. Raises what `work` raises.
    """
    pays = min(values // LEAST, rows // multiple)
    count = min(TO_HELP if is_helped() else available_threads(), pays) if pays > 1 else 1
    if count == 1:
        work(0, rows)
        return
    step = -(-rows // (count * multiple)) * multiple
    if is_helped():
        each_piece(lambda begin: work(begin, min(begin + step, rows)), range(0, rows, step))
        return
    begins = range(step, rows, step)
    others = [_pool().submit(work, begin, min(begin + step, rows)) for begin in begins]
    work(0, step)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "rows")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads are not forked
