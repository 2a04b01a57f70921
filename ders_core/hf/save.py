"""Save a model that is in memory as a packed checkpoint."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ders_core.compute.progress import Progress, quiet
from ders_core.errors import DersError
from ders_core.files.directory import new_directory
from ders_core.files.output import new_target
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

    recipe: a recipe, the name of a preset, or a YAML file. progress: as of `compress`.

    The model is first saved by transformers, because engines know that layout, to a temporary place
    on the same disk; meanwhile this takes free space of the model's size. Raises as
    `ders_core.pipeline.compress.compress` does. An error or an interruption leaves nothing: there
    is not a checkpoint from which a run could be continued.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    target = new_target(out)
    with new_directory(target, needs=_saved_bytes(model)) as packed:
        saved = packed.with_name(f".{packed.name}") / "model"
        with silent():
            model.save_pretrained(saved)
            if tokenizer is not None:
                tokenizer.save_pretrained(saved)
        try:
            return compress(saved, packed, chosen, device=device, progress=progress)
        except DersError as error:  # it names temporary paths
            message = str(error).replace(str(packed), str(target)).replace(str(saved), "the model")
            raise type(error)(message) from error


def _saved_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights that are saved, each shared one once."""
    return sum(weight.nbytes for weight in model.parameters())
