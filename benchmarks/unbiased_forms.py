"""The forms of a delta that `unbiased.py` compares, each at the sizes that it can have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ders_core import CodecError, Recipe, Rule, make_codec
from ders_core.codecs.codec import Need

BITS = (2.0, 1.3, 1.0, 0.6, 0.5, 0.2, 0.1, 0.06)
KNOBS = (8e-6, 1.6e-5, 3e-5, 6e-5, 1.2e-4)
VALUE_BITS = 16
"""Of a kept value in bfloat16."""

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """name: as the table has it. fields: the codec at so many bits an entry, None if it has no
    such size. needs: what a calibration for it must hold. ignores: whether it codes alike without
    a calibration."""

    name: str
    fields: Callable[[float], Fields | None]
    needs: Need = "nothing"
    ignores: bool = False

    def trials(self, bits: tuple[float, ...], knobs: tuple[float, ...]) -> Iterator[Trial]:
        for asked in bits:
            fields = self.fields(asked)
            if fields is not None:
                yield Trial(self.name, asked, None, fields, self.needs, self.ignores)


@dataclass(frozen=True)
class KnobForm(Form):
    """One knob for the whole model in place of bits."""

    def trials(self, bits: tuple[float, ...], knobs: tuple[float, ...]) -> Iterator[Trial]:
        for knob in knobs:
            yield Trial(self.name, None, knob, self.fields(knob) or {}, self.needs, self.ignores)


@dataclass(frozen=True)
class NoDeltas(Form):
    """Every expert is the base."""

    def trials(self, bits: tuple[float, ...], knobs: tuple[float, ...]) -> Iterator[Trial]:
        fields = self.fields(0.0) or {}
        yield Trial(self.name, 0.0, None, fields, self.needs, self.ignores)


@dataclass(frozen=True)
class Trial:
    """One form at one size. bits: asked for, or else knob."""

    form: str
    bits: float | None
    knob: float | None
    fields: Fields
    needs: Need
    ignores: bool

    @property
    def is_known(self) -> bool:
        """Whether this version has the codec."""
        try:
            make_codec(dict(self.fields))
        except CodecError:
            return False
        return True

    def predicted(self) -> Trial:
        """With a calibration for the prediction alone, if that changes nothing else."""
        return replace(self, needs="gradients") if self.ignores else self

    def recipe(self, calibration: Path | None) -> Recipe:
        return Recipe(
            name="unbiased",
            calibration=calibration,
            rules=(Rule(codec=make_codec(dict(self.fields))),),
        )


def _quantized(more: Fields) -> Callable[[float], Fields | None]:
    def fields(bits: float) -> Fields | None:
        if bits not in (1, 2):
            return None
        return {"codec": "quantized", "bits": int(bits), "group_size": 64, **more}

    return fields


def _entropy(more: Fields) -> Callable[[float], Fields | None]:
    return lambda bits: {"codec": "entropy", "bits": bits, **more}


def _random_drop(bits: float) -> Fields:
    return {"codec": "sparse", "drop_rate": round(1 - bits / VALUE_BITS, 5)}


def _none_kept(bits: float) -> Fields:
    return {"codec": "sparse", "method": "magnitude", "drop_rate": 1 - 1e-12}


def _magnitude(more: Fields) -> Callable[[float], Fields | None]:
    def fields(bits: float) -> Fields | None:
        rate = round(1 - _kept_share(bits), 5)
        return {"codec": "sparse", "method": "magnitude", "drop_rate": rate, **more}

    return fields


def _kept_share(bits: float) -> float:
    """The share of entries whose values and places take so many bits an entry."""
    low, high = 0.0, 0.5
    for _ in range(50):
        share = (low + high) / 2
        places = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        low, high = (low, share) if VALUE_BITS * share + places > bits else (share, high)
    return low


SENSITIVE = {"rounding": "unbiased", "steps": "sensitive"}

FORMS = (
    NoDeltas("no deltas", _none_kept, ignores=True),
    Form("quantized", _quantized({})),
    Form("quantized, gain 1", _quantized({"gain": "unbiased"})),
    Form("quantized, gain auto", _quantized({"gain": "auto"})),
    Form("nearest", _entropy({}), ignores=True),
    Form("nearest, gain 1", _entropy({"gain": "unbiased"})),
    Form("nearest, gain auto", _entropy({"gain": "auto"})),
    Form("random drop", _random_drop, ignores=True),
    Form("magnitude", _magnitude({})),
    Form("magnitude, gain 1", _magnitude({"gain": "unbiased"})),
    Form("unbiased", _entropy({"rounding": "unbiased"}), ignores=True),
    Form("unbiased, gain auto", _entropy({"rounding": "unbiased", "gain": "auto"})),
    Form("unbiased, by inputs", _entropy(SENSITIVE), needs="inputs"),
    Form("unbiased, sensitive", _entropy(SENSITIVE), needs="gradients"),
    Form("sensitive, gain auto", _entropy({**SENSITIVE, "gain": "auto"}), needs="gradients"),
    KnobForm(
        "one knob", lambda knob: {"codec": "entropy", "knob": knob, **SENSITIVE}, needs="gradients"
    ),
)
