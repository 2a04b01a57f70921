"""How a codec is offered for choosing: a word in a menu, and the number to set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Strength:
    """The parameter that sets how strongly a codec compresses.

    field: its name in the codec. unit: what it counts, in a few words. start: where a person starts
    from. least, most: the range offered. step: between two values where numbers are typed; whole
    numbers have a step of 1 or more. slider_step: the same on a slider. is_rank: a number of
    directions; a matrix has as many as its shorter side.
    """

    field: str
    unit: str
    start: float
    least: float
    most: float
    step: float
    slider_step: float
    is_rank: bool = False

    @property
    def number(self) -> type[int] | type[float]:
        return int if self.step >= 1 else float

    def slider_range(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Least and most on a slider for matrices `[out, in]`: multiples of the slider's step."""
        most = min(self.most, *shape) if self.is_rank else self.most
        steps = math.ceil(self.least / self.slider_step), math.floor(most / self.slider_step)
        return steps[0] * self.slider_step, steps[1] * self.slider_step


@dataclass(frozen=True)
class Choice:
    """One entry of a menu of codecs.

    label: the word in the menu, unique among all codecs. fields: the codec's parameters that make
    it this choice rather than another one of the same codec. strength: None where there is none.
    begin: further parameters of a codec that is chosen anew; they may have other values later.
    """

    label: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    strength: Strength | None = None
    begin: Mapping[str, Any] = field(default_factory=dict)
