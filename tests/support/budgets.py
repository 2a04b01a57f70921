"""Recipes with a budget, of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ders_core.recipe import Recipe


def asking(calibration: Path, budget: dict[str, Any], **fields: Any) -> Recipe:
    data = {"version": 2, "name": "b", "seed": 5, "calibration": calibration, "budget": budget}
    return Recipe.model_validate(data | fields)
