"""What was compressed and measured, kept one file a trial, so that it is never measured twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ders_core.errors import CheckpointError
from ders_core.files.json_object import read_json
from ders_core.files.place_errors import writing
from ders_core.files.untrusted_json import EVERY_KEY
from ders_core.files.writer import write_json
from ders_core.pipeline.quality import Quality

Role = Literal["tuned", "uniform"]


class Measurement(BaseModel):
    """A recipe that was compressed and measured. nbytes: of the weight files. expert_bytes: of
    deltas and bases. quality: on text that the calibration never saw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nbytes: int
    expert_bytes: int
    quality: Quality

    @property
    def kl(self) -> float:
        """Nats a token."""
        assert self.quality.kl is not None, "it was compared with the original"
        return self.quality.kl


class Trial(BaseModel):
    """role: tuned by scores, or one form in one strength. form: of a uniform one, else "". recipe:
    YAML. predicted_kl, foretold_bytes: before it was measured. size, most: in the bound's measure,
    what it takes and what there may be. costs: the predicted KL by form. keeps: whether what was
    measured keeps to the bound."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role
    form: str = ""
    recipe: str
    predicted_kl: float
    foretold_bytes: int
    size: float
    most: float
    keeps: bool
    costs: dict[str, float]
    measured: Measurement

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        return "tuned" if self.role == "tuned" else f"uniform {self.form}"


@dataclass(frozen=True)
class TrialFiles:
    """Measurements in a directory. context: what they depend on beside the recipe: identities of
    checkpoint, calibration and texts, and how is measured."""

    directory: Path
    context: Mapping[str, Any]

    def name(self, recipe: str) -> str:
        """Of a recipe's measurement; 32 hexadecimal digits."""
        text = json.dumps({**self.context, "recipe": recipe}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def read(self, recipe: str) -> Measurement | None:
        """None if it was not measured, or its file is damaged: it is measured again then."""
        file = self._file(recipe)
        if not file.is_file():
            return None
        try:
            return Measurement.model_validate(read_json(file, once=EVERY_KEY))
        except (CheckpointError, ValidationError):
            return None

    def write(self, recipe: str, measurement: Measurement) -> None:
        """Raises OutputError."""
        file = self._file(recipe)
        with writing(file):
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(file, measurement.model_dump(mode="json"))

    def _file(self, recipe: str) -> Path:
        return self.directory / f"{self.name(recipe)}.json"
