"""The methods that `whole.py` compares, each as a recipe for the whole file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.recipe import Recipe

METHODS = ("lossless", "plain", "plain GPTQ", "no base", "16-bit base", "whole")
UNITS: Mapping[str, str] = {
    "plain": "bits",
    "plain GPTQ": "bits",
    "no base": "of the file",
    "16-bit base": "as the knob",
    "whole": "of the file",
}
"""What the strength of a method is; `lossless` has none."""

BLOCK = 64
"""Of plain quantization: values that share a scale of 16 bits."""


@dataclass(frozen=True)
class Trial:
    """strength: in the method's unit; 0 without one."""

    method: str
    strength: float

    @property
    def label(self) -> str:
        unit = UNITS.get(self.method)
        return self.method if unit is None else f"{self.method}, {self.strength:g} {unit}"

    def recipe(self, calibration: Path) -> Recipe:
        """calibration: with gradients, and of others."""
        fields: dict[str, Any] = {"name": "whole"}
        if self.method == "lossless":
            fields |= {
                "rules": [{"codec": "lossless"}],
                "base_codec": "lossless",
                "others": "lossless",
            }
        elif self.method.startswith("plain"):
            plain = {"codec": "quantized", "bits": int(self.strength), "group_size": BLOCK}
            fields |= {"base": "none", "rules": [plain], "others": plain}
            if self.method == "plain GPTQ":
                fields["calibration"] = calibration
        else:
            measure = "knob" if self.method == "16-bit base" else "share"
            budget = {measure: self.strength}
            fields |= {"version": 2, "calibration": calibration, "budget": budget}
            if self.method == "no base":
                fields["base"] = "none"
            elif self.method == "16-bit base":
                fields |= {"base_codec": "keep", "others": "keep"}
        return Recipe.model_validate(fields)


def trials(methods: Sequence[str], strengths: Mapping[str, Sequence[float]]) -> list[Trial]:
    """strengths: by the units of `UNITS`."""
    return [
        Trial(method, strength)
        for method in methods
        for strength in (strengths[UNITS[method]] if method in UNITS else (0.0,))
    ]
