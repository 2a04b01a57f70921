"""A budget in a recipe: how large a file may get, or what it may cost. One knob decides the rest.

Every matrix is rounded to multiples of s_ij = knob · C_ij^(−½), with C the curvature of KL in its
entries, and the multiples are entropy-coded: what is sensitive gets more bits, in experts, bases
and other tensors alike (reverse water-filling over the whole model).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from ders_core.codecs import Codec, make_codec
from ders_core.units import bytes_text, digits_written, number_text

OF_DELTAS = 0.83
"""The knob of deltas as a part of that of matrices. Rounding by chance has a larger error than
rounding to the nearest, and costs fewer bits where most entries are below a step."""

ONE_OF = "a budget is one of share, bytes, kl and knob"

UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


class Budget(BaseModel):
    """One of: a share of the original's bytes, bytes, KL in nats a token, or the knob itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float | None = Field(default=None, gt=0, lt=1)
    bytes: int | None = Field(default=None, gt=0)
    kl: float | None = Field(default=None, gt=0)
    knob: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, data: Any) -> Any:
        """`25%` is a share of 0.25, and `120MB` are bytes."""
        if isinstance(data, cls):
            return data
        if not isinstance(data, dict):
            raise ValueError(f"{ONE_OF}, such as {{share: 25%}}")
        unknown = [str(name) for name in data if name not in cls.model_fields]
        if unknown:
            raise ValueError(f"{ONE_OF}, and has no {unknown[0][:40]!r}")
        fields = dict(data)
        if isinstance(fields.get("share"), str):
            fields["share"] = _share(fields["share"])
        if isinstance(fields.get("bytes"), str):
            fields["bytes"] = _bytes(fields["bytes"])
        return fields

    @model_validator(mode="after")
    def _one(self) -> Budget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(ONE_OF)
        return self

    @model_serializer
    def _plain(self) -> dict[str, float]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def label(self) -> str:
        """With the digits that were written, up to 12."""
        ((name, value),) = self._plain().items()
        if name == "share":
            percent = 100 * value
            return f"{number_text(percent, digits_written(percent))} % of the original"
        if name == "bytes":
            return bytes_text(value, digits_written(value, 4))
        return f"{name} {number_text(value, digits_written(value))}"


def codec_of_deltas(knob: float) -> Codec:
    """Deltas are rounded by chance, without bias: their errors must not shrink them."""
    return _entropy(knob=OF_DELTAS * knob, rounding="unbiased")


def codec_of_matrices(knob: float, *, compensated: bool = True) -> Codec:
    """Whole matrices are rounded to the nearest multiple. compensated: later columns make up for
    errors."""
    return _entropy(knob=knob, **({"rounding": "compensated"} if compensated else {}))


def _entropy(**fields: Any) -> Codec:
    return make_codec({"codec": "entropy", "steps": "sensitive", **fields})


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*", text)
    if match is None:
        raise ValueError(f"share {text[:40]!r} must be a percentage such as '25%', or a number")
    return float(match[1]) / 100


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*(B|kB|MB|GB|TB)?\s*", text)
    if match is None:
        raise ValueError(
            f"bytes {text[:40]!r} must be a number, or one with a unit such as '6.5GB'"
        )
    return round(float(match[1]) * UNITS[match[2] or "B"])


def names_apart(names: Collection[str], most: int) -> list[tuple[str, ...]]:
    """Patterns that only these names fit, `most` of them at a time."""
    patterns = [glob.escape(name) for name in names]
    return [tuple(patterns[first : first + most]) for first in range(0, len(patterns), most)]
