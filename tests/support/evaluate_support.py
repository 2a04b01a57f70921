"""What the tests of evaluation share: a small measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ders_core.evaluate import Quality, evaluate
from ders_core.files.named_texts import NamedTexts

WINDOW = 32
TOKENS = 310
"""Ten windows of 31 predicted tokens."""


def measure(model: Path, reference: Path | None, text: NamedTexts, **options: Any) -> Quality:
    sizes = {"window": WINDOW, "max_tokens": TOKENS, "batch": 3}
    return evaluate(model, reference, text=text, **(sizes | options))
