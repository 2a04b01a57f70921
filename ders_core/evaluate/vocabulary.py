"""Whether two models know the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.errors import EvaluationError
from ders_core.hf.describe import ModelFacts


def shared_vocabulary(models: Sequence[ModelFacts]) -> int:
    """Size of the vocabulary of both models. Raises EvaluationError if they differ."""
    first, second = models
    if first.vocabulary is None or first.vocabulary != second.vocabulary:
        raise EvaluationError(
            f"{second.path} has a vocabulary of {second.vocabulary or 'unknown size'}, "
            f"{first.path} one of {first.vocabulary or 'unknown size'}; only models with one "
            "vocabulary can be compared"
        )
    return first.vocabulary
