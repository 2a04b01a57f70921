"""A recipe as a table, one row a group, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ders_core.analysis import Analysis, expected
from ders_core.codecs import CODECS, Choice, Codec, Expected, Strength, make_codec
from ders_core.codecs.gain import Gain
from ders_core.codecs.group import GroupCodec
from ders_core.errors import CodecError
from ders_core.later import pd
from ders_core.pipeline.forecast import Forecast
from ders_core.pipeline.foretold import ForecastEntry
from ders_core.pipeline.plan import Plan, PlanEntry
from ders_core.pipeline.quality import GAIN, NOISE

OTHER = "other (YAML)"
"""What the table shows for a codec without a menu entry, and for groups of several codecs. These
are written in YAML; the table leaves them as they are."""

FIRST_CHOICE = "unbiased rounding"
"""What the menu for many groups shows first."""


@dataclass(frozen=True)
class MenuEntry:
    """A codec's choice and its class."""

    codec: type[Codec]
    choice: Choice

    @property
    def strength(self) -> Strength | None:
        return self.choice.strength

    @property
    def has_gain(self) -> bool:
        """Whether a person may say how much of a delta is given back."""
        return "gain" in self.codec.model_fields

    def make(self, value: float | None, fields: Mapping[str, Any]) -> Codec:
        """The codec with these parameters; those of the choice and its strength take their place.

        Raises CodecError if the strength is not possible.
        """
        parameters = {**fields, **self.choice.fields, "codec": self.codec.name}
        if self.strength is not None and value is not None:
            number = self.strength.number
            parameters[self.strength.field] = round(value) if number is int else value
        try:
            return make_codec(parameters)
        except CodecError as error:
            strength = "" if value is None else f"{value:g} "
            raise CodecError(f"{self.choice.label}: {strength}is not possible ({error})") from error


def menu() -> dict[str, MenuEntry]:
    """Label -> entry, of every registered codec."""
    ordered = sorted(CODECS.values(), key=lambda codec: (codec.menu_place, codec.name))
    return {choice.label: MenuEntry(codec, choice) for codec in ordered for choice in codec.choices}


def choice_of(codec: GroupCodec) -> str:
    """The label under which the table shows a group's codec."""
    choice = None if codec.codec is None else codec.codec.choice
    return OTHER if choice is None else choice.label


def strength_of(codec: GroupCodec) -> float | None:
    """The codec's strength in its unit; None where it has none, or another parameter decides
    (a rank by energy)."""
    choice = None if codec.codec is None else codec.codec.choice
    if choice is None or choice.strength is None:
        return None
    value = getattr(codec.codec, choice.strength.field)
    return None if value is None else float(value)


def codec_from(
    label: str, strength: float | None, before: GroupCodec, gain: Gain | None = None
) -> GroupCodec:
    """The codec of a row. What the table does not show (block size, grid) stays as it was; so does
    the gain, unless another one is given.

    Raises CodecError if the strength or the gain is not possible.
    """
    entry, is_same = menu().get(label), choice_of(before) == label
    if entry is None:
        return before
    fields = dict(entry.choice.begin)
    if entry.strength is not None:
        if strength is None or pd.isna(strength):
            if is_same:
                return before
            strength = entry.strength.start
        if is_same and before.codec is not None:
            fields = before.codec.fields_beside_strength()
    if gain is not None:
        fields["gain"] = gain
    return GroupCodec.same(entry.make(strength, fields), len(before.uses))


def strengths_sentence() -> str:
    """What a strength counts, for each codec of the menu."""
    labels: dict[str, list[str]] = {}
    for label, entry in menu().items():
        if entry.strength is not None:
            labels.setdefault(entry.strength.unit, []).append(label)
    units = [f"{', '.join(names)}: {unit}." for unit, names in labels.items()]
    return " ".join([*units, "Empty where another parameter decides, such as energy for a rank."])


def calibration_sentence() -> str:
    """What each codec of the menu does with a calibration."""
    users = {entry.codec.name: entry.codec for entry in menu().values()}
    return ", ".join(
        f"`{name}` {codec.use_of_calibration}"
        for name, codec in users.items()
        if codec.use_of_calibration
    )


def table(plan: Plan, analysis: Analysis | None, told: Forecast | None = None) -> pd.DataFrame:
    """layer, projection, codec, strength, before and after in MB, share of original in %, gain and
    noise: foretold from a sample, else expected from the analysis."""
    rows = []
    for number, entry in enumerate(plan.entries):
        sampled = None if told is None else told.entries[number]
        after = entry.bytes_after if sampled is None else sampled.bytes_after
        loss: Expected | ForecastEntry | None = sampled
        if sampled is None or sampled.gain is None:
            loss = _expected(entry, analysis)
        rows.append(
            {
                "layer": entry.layer,
                "projection": entry.projection,
                "codec": choice_of(entry.codec),
                "strength": strength_of(entry.codec),
                "before": entry.bytes_before / 1e6,
                "after": after / 1e6,
                "share": 100 * after / entry.bytes_before,
                GAIN.key: None if loss is None else loss.gain,
                NOISE.key: None if loss is None else loss.noise,
            }
        )
    return pd.DataFrame(rows)


def has_gains(rows: pd.DataFrame, plan: Plan) -> bool:
    """Whether the gain of any group that is replaced stands in the table. rows: of `table`."""
    replaced = [entry.packed for entry in plan.entries]
    return bool(rows.loc[replaced, GAIN.key].notna().any())


def _expected(entry: PlanEntry, analysis: Analysis | None) -> Expected | None:
    if analysis is None or entry.codec.codec is None:
        return None
    return expected(analysis, entry.layer, entry.projection, entry.codec.codec)


def codecs_of(plan: Plan) -> dict[tuple[int, str], GroupCodec]:
    return {entry.key: entry.codec for entry in plan.entries}


def apply_edits(
    plan: Plan, edits: Mapping[int, Mapping[str, Any]]
) -> dict[tuple[int, str], GroupCodec]:
    """The codecs after edits, which are row -> {column: value}. Raises CodecError."""
    codecs = codecs_of(plan)
    for row, changed in edits.items():
        entry = plan.entries[row]
        label = choice_of(entry.codec)
        chosen = str(changed.get("codec", label))
        start = strength_of(entry.codec) if chosen == label else None
        codecs[entry.key] = codec_from(chosen, changed.get("strength", start), entry.codec)
    return codecs
