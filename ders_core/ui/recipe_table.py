"""A recipe as a table, one row a group, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ders_core.analysis import Analysis, predicted_error
from ders_core.codecs import Codec, Sparse, make_codec
from ders_core.codecs.group import GroupCodec
from ders_core.errors import CodecError
from ders_core.pipeline.plan import Plan


@dataclass(frozen=True)
class Strength:
    """The parameter that sets how strong a codec is: its unit, where it starts, and what it may be.
    It is a whole number where its steps are."""

    key: str
    unit: str
    start: float
    least: float
    most: float
    step: float

    @property
    def number(self) -> type[int] | type[float]:
        return int if self.step >= 1 else float


@dataclass(frozen=True)
class Form:
    """fields: what makes the codec. strength: None where there is none."""

    fields: Mapping[str, Any]
    strength: Strength | None = None

    def has(self, codec: Codec) -> bool:
        told = codec.dump()
        return all(told.get(key) == value for key, value in self.fields.items())


DROP = Strength("drop_rate", "share of entries dropped", 0.9, 0, 0.999, 0.05)
BITS = Strength("bits", "bits per entry", 4, 1, 8, 1)
RATE = Strength("bits", "most bits per entry", 1, 0.05, 8, 0.05)
RANK = Strength("rank", "rank", 16, 1, 4096, 1)

FORMS: dict[str, Form] = {
    "keep": Form({"codec": "keep"}),
    "lossless": Form({"codec": "lossless"}),
    "random drop": Form({"codec": "sparse", "method": "random"}, DROP),
    "magnitude": Form({"codec": "sparse", "method": "magnitude"}, DROP),
    "della": Form({"codec": "sparse", "method": "della"}, DROP),
    "quantized": Form({"codec": "quantized"}, BITS),
    "entropy": Form({"codec": "entropy"}, RATE),
    "low rank": Form({"codec": "lowrank"}, RANK),
}
"""What the table calls a codec -> what makes it. Chains and several codecs in one group are written
in YAML; the table shows them and leaves them as they are."""

OTHER = "other (YAML)"

CHOSEN = ("codec", "energy", "bits")
REPLACED = (("grid", "ternary"),)
"""What no longer holds of a codec once its row has another strength."""


def form_of(codec: GroupCodec) -> str:
    own = codec.codec
    if own is None or (isinstance(own, Sparse) and own.pattern is not None):
        return OTHER
    return next((name for name, form in FORMS.items() if form.has(own)), OTHER)


def strength_of(codec: GroupCodec) -> float | None:
    """The codec's strength in its own unit; None where it has none, or it is chosen by energy."""
    form = FORMS.get(form_of(codec))
    if form is None or form.strength is None:
        return None
    value = getattr(codec.codec, form.strength.key, None)
    return float(value) if value is not None else None


def codec_from(name: str, strength: float | None, before: GroupCodec) -> GroupCodec:
    """The codec of a row. What the table does not show (group size, energy) stays as it was.

    Raises CodecError if the strength is not possible.
    """
    form, same = FORMS.get(name), form_of(before) == name
    if form is None:
        return before
    kept: dict[str, Any] = {}
    if form.strength is not None:
        own = form.strength
        if strength is None or pd.isna(strength):
            if same:
                return before
            strength = own.start
        value = round(float(strength)) if own.number is int else float(strength)
        if same and before.codec is not None:
            told = before.codec.dump()
            kept = {k: v for k, v in told.items() if (k, v) not in REPLACED and k not in CHOSEN}
        kept[own.key] = value
    try:
        codec = make_codec({**kept, **form.fields})
    except CodecError as error:
        raise CodecError(f"{name}: {strength:g} is not possible ({error})") from error
    return GroupCodec.same(codec, len(before.uses))


def table(plan: Plan, analysis: Analysis | None) -> pd.DataFrame:
    """layer, projection, codec, strength, before and after in MB, share of original in %, error."""
    rows = []
    for entry in plan.entries:
        error = None
        if analysis is not None and entry.codec.codec is not None:
            told = entry.codec.codec.dump()
            error = predicted_error(analysis, entry.layer, entry.projection, told)
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


def codecs_of(plan: Plan) -> dict[tuple[int, str], GroupCodec]:
    return {entry.key: entry.codec for entry in plan.entries}


def apply_edits(
    plan: Plan, edits: Mapping[int, Mapping[str, Any]]
) -> dict[tuple[int, str], GroupCodec]:
    """The codecs after edits, given as row -> {column: value}. Raises CodecError."""
    codecs = codecs_of(plan)
    for row, changed in edits.items():
        entry = plan.entries[row]
        form = str(changed.get("codec", form_of(entry.codec)))
        fresh = "codec" in changed and changed["codec"] != form_of(entry.codec)
        start = None if fresh else strength_of(entry.codec)
        codecs[entry.key] = codec_from(form, changed.get("strength", start), entry.codec)
    return codecs
