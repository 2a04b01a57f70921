"""How much memory tensors hold at once while something is computed."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from ders_core.compute import buffers


def most_held(work: Callable[[], object]) -> int:
    """The most bytes that work in this thread holds at once: of torch's allocator, and at most as
    much again as memory that is reused was in use at once."""
    with buffers.memory_is_reused():
        before = buffers._account.in_use
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            work()
        reused = buffers._account.most - before
    events = [
        event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most + reused
