"""Whether models know the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.errors import EvaluationError
from ders_core.hf.describe import ModelFacts


def shared_vocabulary(models: Sequence[ModelFacts]) -> int:
    """Size of the vocabulary of all models. Raises EvaluationError if one differs from the
    first."""
    first = models[0]
    apart = next((model for model in models if model.vocabulary != first.vocabulary), None)
    if first.vocabulary is None or apart is not None:
        other = apart or models[-1]
        raise EvaluationError(
            f"{other.path} has a vocabulary of {other.vocabulary or 'unknown size'}, "
            f"{first.path} one of {first.vocabulary or 'unknown size'}; only models with one "
            "vocabulary can be compared"
        )
    return first.vocabulary
