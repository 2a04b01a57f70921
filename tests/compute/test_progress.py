"""The meter: what it counts, what it reports, and when."""

from __future__ import annotations

import pytest

from ders_core.compute.progress import Meter, counted
from ders_core.errors import Cancelled

Call = tuple[int, int, str]


def test_every_change_is_reported() -> None:
    calls: list[Call] = []
    meter = Meter(10, lambda *call: calls.append(call))
    meter.report("opening")
    meter.advance(4, "reading")
    meter.at(6, "writing")
    meter.finish("written")
    assert calls == [
        (0, 10, "opening"),
        (4, 10, "reading"),
        (6, 10, "writing"),
        (10, 10, "written"),
    ]


def test_what_is_reported_never_exceeds_the_total() -> None:
    calls: list[Call] = []
    meter = Meter(10, lambda *call: calls.append(call))
    meter.advance(8, "a")
    meter.advance(8, "b")
    assert calls == [(8, 10, "a"), (10, 10, "b")]
    assert meter.done == 16


def test_chunks_are_counted_once_they_are_used() -> None:
    calls: list[Call] = []
    meter = Meter(5, lambda *call: calls.append(call))
    chunks = counted([b"ab", b"cde"], meter.advance, "writing")
    assert next(chunks) == b"ab"
    assert calls == []
    assert next(chunks) == b"cde"
    assert calls == [(2, 5, "writing")]
    assert list(chunks) == []
    assert calls == [(2, 5, "writing"), (5, 5, "writing")]


def test_a_callback_that_cancels_ends_the_work() -> None:
    def cancel(done: int, total: int, message: str) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        list(counted([b"ab"], Meter(2, cancel).advance, "writing"))
