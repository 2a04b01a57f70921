"""Where a recipe that loses something takes more bytes than one that loses nothing."""

from __future__ import annotations

from ders_core.pipeline.forecast import Forecast
from ders_core.pipeline.plan import Plan
from ders_core.units import bytes_text, listed

CLEARLY = 0.99
"""What lossless takes of the recipe's bytes at most, to be called less: a sample tells bytes within
about half a percent."""


def lossless_note(plan: Plan, told: Forecast) -> str:
    """A sentence that names the groups and other tensors that `lossless` would make smaller than
    the recipe does; empty if there are none, or if the forecast was not asked for it."""
    names, saved = list[str](), 0
    for group in told.entries:
        if _is_less(group.bytes_lossless, group.bytes_after):
            names.append(f"layer {group.layer}, {group.projection}")
            saved += group.bytes_after - (group.bytes_lossless or 0)
    for other in told.others:
        if _is_less(other.bytes_lossless, other.bytes_after):
            names.append(other.name)
            saved += other.bytes_after - (other.bytes_lossless or 0)
    if not names:
        return ""
    all_groups = sum(1 for entry in plan.entries if entry.packed) + len(plan.others)
    which = "all that is coded" if len(names) == all_groups else listed(names)
    return (
        f"the codec lossless would take about {bytes_text(saved, 2)} less and lose nothing, for "
        f"{which}"
    )


def _is_less(lossless: int | None, after: int) -> bool:
    return lossless is not None and lossless < CLEARLY * after
