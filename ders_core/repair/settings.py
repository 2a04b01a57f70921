"""What a repair trains, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ders_core.checkpoint.others import Kind
from ders_core.codecs.tunable import TUNED_KINDS
from ders_core.errors import RecipeError, sentence_of

BASES, BIASES = "bases", "biases"

CARRIED: Mapping[str, Kind] = {
    "norms": "norm",
    "routers": "router",
    "vectors": "vector",
    "attention": "attention",
    "ffns": "ffn",
    "shared": "shared",
    "embeddings": "embedding",
    "heads": "head",
}
"""Words for tensors that a packed checkpoint holds as they were, and their kind."""

TRAINABLE: tuple[str, ...] = (*TUNED_KINDS, BASES, BIASES, *CARRIED)
"""What can be trained: parts of codes, bases that are kept as numbers, experts' biases, tensors
that are carried."""

GAINS = "gains"

DEFAULT_TRAIN: tuple[str, ...] = (
    *(kind for kind in TUNED_KINDS if kind != GAINS),
    BASES,
    BIASES,
    "norms",
    "routers",
    "vectors",
)
"""All that is small and takes no bytes besides those that the file has."""


class RepairSettings(BaseModel):
    """train: words of TRAINABLE. window: tokens of context; batch: windows in a step. rate: of
    Adam, as a share of the root mean square of each tensor; it falls to 0 by a cosine. None: as
    `pace` finds it. heldout_tokens: how many are measured at most. save_every: steps between
    training checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[str, ...] = DEFAULT_TRAIN
    steps: int = Field(default=300, ge=1)
    batch: int = Field(default=8, ge=1)
    window: int = Field(default=256, ge=2)
    rate: float | None = Field(default=None, gt=0, le=1)
    heldout_tokens: int = Field(default=16384, ge=2)
    save_every: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    @field_validator("train")
    @classmethod
    def _known(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [word for word in words if word not in TRAINABLE]
        if unknown or not words:
            wrong = f"{unknown[0]!r} cannot be trained" if unknown else "nothing is to be trained"
            raise ValueError(f"{wrong}; choose of {', '.join(TRAINABLE)}")
        return tuple(word for word in TRAINABLE if word in words)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> RepairSettings:
        """Raises RecipeError for a field or a value that is not known."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            sentence = sentence_of(error, "repair", "setting", cls.model_fields)
            raise RecipeError(sentence) from error
