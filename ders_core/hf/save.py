"""From a model in memory to a packed checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ders_core.compute.progress import Progress, quiet
from ders_core.errors import DersError, OutputError
from ders_core.files.aside import sync_directory
from ders_core.hf.silence import silent
from ders_core.pipeline.compress import compress
from ders_core.pipeline.report import Report
from ders_core.recipe import Recipe, load_recipe


def save_packed(
    model: PreTrainedModel,
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "cpu",
    progress: Progress = quiet,
) -> Report:
    """Write the packed form of `model` to the new directory `out`.

    recipe: or a preset's name, or a YAML file.

    The model is first saved as transformers saves it, aside on the same disk, because that is the
    layout that engines know; this takes the model's size in free space for a while. `out` appears
    whole, by a rename. Raises as `ders_core.pipeline.compress.compress` does; then, or when
    interrupted, nothing is left, because there is no checkpoint from which a run could be
    continued.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    target = Path(out).expanduser()
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target} exists; choose another name or remove it first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)).resolve()
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}") from error
    saved, packed = aside / "model", aside / "packed"
    try:
        with silent():
            model.save_pretrained(saved)
            if tokenizer is not None:
                tokenizer.save_pretrained(saved)
        report = compress(saved, packed, chosen, device=device, progress=progress)
        os.rename(packed, target)
        sync_directory(target.parent)
    except DersError as error:  # names a place that is about to vanish
        told = str(error).replace(str(packed), str(target)).replace(str(saved), "the model")
        raise type(error)(told) from error
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report
