"""A recipe as a table, one row a group, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ders_core.analysis import Analysis, predicted_error
from ders_core.codecs import DeltaCodec, Keep, LowRank, Quantized, Sparse, make_codec
from ders_core.errors import CodecError
from ders_core.plan import Plan

FORMS: dict[str, dict[str, Any]] = {
    "keep": {"codec": "keep"},
    "random drop": {"codec": "sparse", "method": "random"},
    "magnitude": {"codec": "sparse", "method": "magnitude"},
    "quantized": {"codec": "quantized"},
    "low rank": {"codec": "lowrank"},
}
"""What the table calls a codec -> the fields that make it."""

STRENGTHS = {
    "random drop": ("drop_rate", 0.9),
    "magnitude": ("drop_rate", 0.9),
    "quantized": ("bits", 4),
    "low rank": ("rank", 16),
}
"""Form -> the parameter that sets its strength, and where it starts."""

UNITS = {
    "random drop": "share of entries dropped",
    "magnitude": "share of entries dropped",
    "quantized": "bits per entry",
    "low rank": "rank",
}


def form_of(codec: DeltaCodec) -> str:
    match codec:
        case Sparse():
            return "random drop" if codec.method == "random" else "magnitude"
        case Quantized():
            return "quantized"
        case LowRank():
            return "low rank"
        case _:
            return "keep"


def strength_of(codec: DeltaCodec) -> float | None:
    """The codec's strength in its own unit; None for `keep` and for a rank by energy."""
    name = STRENGTHS.get(form_of(codec), ("", 0))[0]
    value = getattr(codec, name, None) if name else None
    return float(value) if value is not None else None


def codec_from(form: str, strength: float | None, before: DeltaCodec | None = None) -> DeltaCodec:
    """The codec of a row. What the table does not show (group size, energy) stays as it was.

    Raises CodecError if the strength is not possible.
    """
    if form not in STRENGTHS:
        return Keep()
    name, start = STRENGTHS[form]
    same = before is not None and form_of(before) == form
    if strength is None or pd.isna(strength):
        if same and before is not None:
            return before
        strength = start
    value = float(strength) if name == "drop_rate" else round(float(strength))
    kept: dict[str, Any] = {}
    if same and before is not None:
        kept = {k: v for k, v in before.dump().items() if k not in ("codec", "energy", name)}
    try:
        return make_codec({**kept, **FORMS[form], name: value})
    except CodecError as error:
        raise CodecError(f"{form}: {value:g} is not possible ({error})") from error


def table(plan: Plan, analysis: Analysis | None) -> pd.DataFrame:
    """layer, projection, codec, strength, before and after in MB, share of original in %, error."""
    rows = []
    for entry in plan.entries:
        error = None
        if analysis is not None:
            error = predicted_error(analysis, entry.layer, entry.projection, entry.codec.dump())
        rows.append(
            {
                "layer": entry.layer,
                "projection": entry.projection,
                "codec": form_of(entry.codec),
                "strength": strength_of(entry.codec),
                "before": entry.bytes_before / 1e6,
                "after": entry.bytes_after / 1e6,
                "share": 100 * entry.bytes_after / entry.bytes_before,
                "error": error,
            }
        )
    return pd.DataFrame(rows)


def codecs_of(plan: Plan) -> dict[tuple[int, str], DeltaCodec]:
    return {entry.key: entry.codec for entry in plan.entries}


def apply_edits(
    plan: Plan, edits: Mapping[int, Mapping[str, Any]]
) -> dict[tuple[int, str], DeltaCodec]:
    """The codecs after edits, given as row -> {column: value}. Raises CodecError."""
    codecs = codecs_of(plan)
    for row, changed in edits.items():
        entry = plan.entries[row]
        form = str(changed.get("codec", form_of(entry.codec)))
        fresh = "codec" in changed and changed["codec"] != form_of(entry.codec)
        start = None if fresh else strength_of(entry.codec)
        codecs[entry.key] = codec_from(form, changed.get("strength", start), entry.codec)
    return codecs
