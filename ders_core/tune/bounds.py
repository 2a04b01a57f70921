"""What a tuning must keep to: a size, counted in one of several ways, or a KL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ders_core.errors import RecipeError
from ders_core.recipe.budget import UNITS
from ders_core.units import bytes_text

Measure = Literal["bytes", "share", "bits", "read", "kl"]

_NUMBER = r"(\d{1,15}(?:\.\d{1,9})?)"
_BYTES = re.compile(rf"\s*{_NUMBER}\s*({'|'.join(UNITS)})\s*(/\s*token)?\s*")
_SHARE = re.compile(rf"\s*{_NUMBER}\s*%\s*")
_BITS = re.compile(rf"\s*{_NUMBER}\s*bits?\s*")


@dataclass(frozen=True)
class Bound:
    """measure `bytes`: of the weight files. `share`: of the original's. `bits`: of deltas and bases
    for each weight of an expert; what is outside the experts loses nothing then. `read`: bytes that
    are read for one token on average, of experts as many as it is given. `kl`: nats a token, with
    the least bytes that keep to it."""

    measure: Measure
    most: float

    def __post_init__(self) -> None:
        if not self.most > 0 or (self.measure == "share" and self.most >= 1):
            raise RecipeError(
                f"a budget of {self.most:g} ({self.measure}) cannot be met; give a number above 0, "
                "and a share below 100%"
            )

    @classmethod
    def parse(cls, text: str) -> Bound:
        """'40%', '6GB', '2.5bits' or '900MB/token'. Raises RecipeError for anything else."""
        if match := _SHARE.fullmatch(text):
            return cls("share", float(match[1]) / 100)
        if match := _BITS.fullmatch(text):
            return cls("bits", float(match[1]))
        if match := _BYTES.fullmatch(text):
            return cls("read" if match[3] else "bytes", float(match[1]) * UNITS[match[2]])
        raise RecipeError(
            f"budget {text[:40]!r} must be a share such as '40%', bytes such as '6GB', bits a "
            "weight of an expert such as '2.5bits', or bytes read a token such as '900MB/token'"
        )

    @property
    def label(self) -> str:
        """In a few words."""
        match self.measure:
            case "share":
                return f"{100 * self.most:g} % of the original"
            case "bytes":
                return bytes_text(self.most)
            case "bits":
                return f"{self.most:g} bits a weight of an expert"
            case "read":
                return f"{bytes_text(self.most)} read a token"
            case "kl":
                return f"a KL of {self.most:g} nats a token"
