"""The tables of `ders plan`: what a recipe does to groups, their bases and other tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ders_core.cli.console import print_table
from ders_core.units import bytes_text

if TYPE_CHECKING:
    from ders_core.codecs import Codec
    from ders_core.pipeline.forecast import Forecast
    from ders_core.pipeline.plan import Plan

NO_BASE = "none"
"""What is said of a group that has no base."""


def print_tables(planned: Plan, foretold: Forecast | None) -> None:
    """Groups; how their bases are coded, where any are; and other tensors by kind and codec.

    foretold: of that plan. Bytes are then as foretold, not the most that they may be, gain and
    noise are told, and the kind of base where the recipe leaves it open.
    """
    _print_groups(planned, foretold)
    _print_bases(planned, foretold)
    _print_others(planned, foretold)


def _print_groups(planned: Plan, foretold: Forecast | None) -> None:
    columns = ["layer", "projection", "codec"]
    rows = [[str(entry.layer), entry.projection, entry.codec.label] for entry in planned.entries]
    if foretold is not None and planned.recipe.base.is_optional:
        columns.append("base")
        for row, told in zip(rows, foretold.entries, strict=True):
            row.append(told.base or "unknown")
    columns += ["before", "after"]
    for row, entry in zip(rows, planned.entries, strict=True):
        row.append(bytes_text(entry.bytes_before))
        if foretold is None:
            row.append(_at_most(entry.bytes_after, exact=entry.exact))
    if foretold is not None:
        columns += ["gain", "noise"]
        for row, told in zip(rows, foretold.entries, strict=True):
            row.append(bytes_text(told.bytes_after))
            row += [
                "unknown" if each is None else f"{each:.3f}" for each in (told.gain, told.noise)
            ]
    print_table(columns, rows)


def _print_bases(planned: Plan, foretold: Forecast | None) -> None:
    """Their bytes are among those of their groups."""
    counts: dict[str, int] = {}
    is_coded = False
    for number, entry in enumerate(planned.entries):
        if entry.codec.keeps or entry.base is None:
            continue
        goes_without = foretold is not None and foretold.entries[number].is_baseless
        codec = NO_BASE if goes_without else entry.base.codec.label
        counts[codec] = counts.get(codec, 0) + 1
        is_coded |= entry.base.is_coded
    if is_coded:
        rows = [[f"{count} of {len(planned.entries)}", codec] for codec, count in counts.items()]
        print_table(["groups", "codec of their bases"], rows)


def _print_others(planned: Plan, foretold: Forecast | None) -> None:
    if not planned.others:
        return
    told = {} if foretold is None else {each.name: each.bytes_after for each in foretold.others}
    sizes: dict[tuple[str, Codec], list[tuple[int, int, bool]]] = {}
    for entry in planned.others:
        after = entry.bytes_after if foretold is None else told[entry.name]
        is_exact = entry.exact or foretold is not None
        of_kind = sizes.setdefault((entry.kind, entry.codec), [])
        of_kind.append((entry.bytes_before, after, is_exact))
    rows = []
    for (kind, codec), tensors in sizes.items():
        all_before, all_after, exact = zip(*tensors, strict=True)
        most = _at_most(sum(all_after), exact=all(exact))
        rows.append([f"{kind} ({len(tensors)})", codec.label, bytes_text(sum(all_before)), most])
    print_table(["other tensors", "codec", "before", "after"], rows)


def _at_most(nbytes: int, *, exact: bool) -> str:
    return ("" if exact else "≤ ") + bytes_text(nbytes)
