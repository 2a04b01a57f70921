"""What models wrote behind prompts, kept one file a model, so that it is written once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.evaluate.continuation import Prompt
from ders_core.files.json_object import read_json
from ders_core.files.place_errors import writing
from ders_core.files.writer import write_json

ORIGINAL = ""
"""In the place of a recipe."""


@dataclass(frozen=True)
class AnswerFiles:
    """context: what the answers depend on beside the recipe, JSON values."""

    directory: Path
    context: dict[str, Any]
    prompts: Sequence[Prompt]

    def of(self, recipe: str, write: Callable[[], Sequence[str]]) -> tuple[str, ...]:
        """The answers that are kept, or those that `write` gives. recipe: YAML. Raises OutputError
        and what `write` raises."""
        known = self.read(recipe)
        if known is not None:
            return known
        answers = tuple(write())
        file = self._file(recipe)
        with writing(file):
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(file, {"answers": answers})
        return answers

    def read(self, recipe: str) -> tuple[str, ...] | None:
        """None if there are none, or their file is damaged: they are written again then."""
        file = self._file(recipe)
        if not file.is_file():
            return None
        try:
            answers = read_json(file).get("answers")
        except CheckpointError:
            return None
        if not isinstance(answers, list) or len(answers) != len(self.prompts):
            return None
        return tuple(map(str, answers))

    def _file(self, recipe: str) -> Path:
        prompts = [prompt.tokens for prompt in self.prompts]
        text = json.dumps({**self.context, "prompts": prompts, "recipe": recipe}, sort_keys=True)
        return self.directory / f"answers-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
