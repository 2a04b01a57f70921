"""From a model in memory to a packed checkpoint."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ders_core.compress import compress
from ders_core.errors import OutputError
from ders_core.progress import Progress, quiet
from ders_core.recipe import Recipe
from ders_core.report import Report


def save_packed(
    model: PreTrainedModel,
    recipe: Recipe,
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "cpu",
    progress: Progress = quiet,
) -> Report:
    """Write the packed form of `model` to the new directory `out`.

    The model is first saved as transformers saves it, aside on the same disk, because that is the
    layout that engines know; this takes the model's size in free space for a while. Raises as
    `ders_core.compress.compress` does; then nothing stands at `out`.
    """
    target = Path(out).expanduser()
    if target.exists():
        raise OutputError(f"{target} exists; choose another name or remove it first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}") from error
    try:
        model.save_pretrained(aside)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        return compress(aside, target, recipe, device=device, progress=progress)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
