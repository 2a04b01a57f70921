"""Load a model or its tokenizer from a directory: original, dense or packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ders_core.checkpoint import recognise
from ders_core.compute.device import device_label, resolve_device
from ders_core.errors import CheckpointError, DersError
from ders_core.files.address import as_local
from ders_core.files.inputs import hold_files, unchanged_inputs
from ders_core.files.json_object import read_json
from ders_core.files.side_files import TOKENIZER_FILES
from ders_core.files.stand_ins import START_BYTES, is_pointer, stand_in
from ders_core.files.store import TensorStore
from ders_core.hf.classes import named_class, refused, untrusted, words
from ders_core.hf.plugin import experts_held
from ders_core.hf.silence import silent
from ders_core.packed.open import is_packed, open_checkpoint
from ders_core.runtime.modes import CACHE_BYTES, Mode


@unchanged_inputs()
def load_model(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    mode: Mode = "synthesized",
    cache_bytes: int = CACHE_BYTES,
) -> PreTrainedModel:
    """A model from an original, dense or packed directory, in evaluation mode.

    mode: how it holds the experts of a packed checkpoint (see `ders_core.runtime.modes`): by
    default they are synthesized while they load. cache_bytes: of whole weights that the mode
    `cached` keeps. dtype: by default the checkpoint's. Threads load one after another. What it
    takes in memory, `get_memory_footprint()` of the model tells.
    Raises CheckpointError if the directory is damaged or written meanwhile, or its tensors are not
    those of the model that its config describes; DersError if the device is absent or too small.
    """
    where = resolve_device(device)
    store = TensorStore.open(as_local(path))
    if mode != "synthesized" and not is_packed(store.path):
        raise DersError(f"{store.path} is not packed, so its experts cannot be held {mode}")
    with silent(), experts_held(mode, cache_bytes):
        try:
            model_class: Any = named_class(store.config) or AutoModelForCausalLM
            model, loading_info = model_class.from_pretrained(
                store.path,
                dtype=dtype or "auto",
                device_map={"": where},
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are reported, and `_check_keys` raises
                output_loading_info=True,
            )
        except DersError:
            raise
        except torch.OutOfMemoryError as error:
            raise DersError(
                f"{store.path} does not fit into the memory of {device_label(where)}; choose cpu"
            ) from error
        except Exception as error:  # transformers fails in many ways on a config or a tensor
            raise _refused(store, error) from error
    _check_keys(store.path, loading_info)
    return model.eval()


def _check_keys(path: Path, loading_info: dict[str, Any]) -> None:
    """Raise CheckpointError unless the model's parameters and the tensors are the same ones."""
    for kind, fault in (
        ("missing_keys", "missing from the weights"),
        ("unexpected_keys", "not part of the model"),
        ("mismatched_keys", "of another shape than the model's"),
    ):
        names = sorted(key if isinstance(key, str) else key[0] for key in loading_info[kind])
        if names:
            more = f" and {len(names) - 1} more are" if names[1:] else " is"
            raise CheckpointError(
                f"{path}: {names[0]!r}{more} {fault}; config.json and the weights belong to "
                "different models, so copy the directory again"
            )


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises CheckpointError if there is none that can be read."""
    directory = as_local(path)
    _refuse_pointers(directory)
    files = (directory / name for name in TOKENIZER_FILES)
    hold_files(file for file in files if file.is_file())
    with silent():
        try:
            return AutoTokenizer.from_pretrained(
                directory, trust_remote_code=trust_remote_code, local_files_only=True
            )
        except Exception as error:  # transformers fails in many ways on such files
            raise _no_tokenizer(directory, error) from error


def _no_tokenizer(directory: Path, error: Exception) -> CheckpointError:
    """What to raise for a tokenizer that cannot be loaded: there is none, or why not."""
    advice = "copy the original's tokenizer files next to the weights"
    settings = directory / "tokenizer_config.json"
    if "trust_remote_code" in str(error):
        return untrusted(directory, read_json(settings) if settings.is_file() else {})
    files = sorted(directory.glob("*token*")) + sorted(directory.glob("vocab*"))
    if not files:
        return CheckpointError(f"{directory} has no tokenizer that transformers can read; {advice}")
    for file in files:
        if file.suffix == ".json":
            try:
                read_json(file)
            except CheckpointError as damaged:
                return CheckpointError(f"{damaged}, so there is no tokenizer; {advice}")
    names = ", ".join(file.name for file in files[:4])
    return CheckpointError(
        f"{directory} has no tokenizer that transformers can read from {names}: {words(error)}; "
        f"{advice}"
    )


def _refuse_pointers(directory: Path) -> None:
    """Raise CheckpointError for a tokenizer's file that git left a pointer for: a template that is
    one would be taken for a template."""
    whole = directory / "tokenizer.json"
    for name in TOKENIZER_FILES:
        file = directory / name
        needed = not name.endswith(".model") or not whole.is_file()
        if needed and file.is_file():
            with open(file, "rb") as opened:
                start = opened.read(START_BYTES)
            if is_pointer(start):
                raise CheckpointError(f"{file} {stand_in(start)}")


def _refused(store: TensorStore, error: Exception) -> CheckpointError:
    """What to raise for a failed load: our sentence if experts are incomplete, else transformers'
    own words."""
    code_or_package = isinstance(error, ImportError) or "trust_remote_code" in str(error)
    if not code_or_package and not is_packed(store.path):
        try:
            if recognise(store.path, store.config, store.specs) is not None:
                open_checkpoint(store.path)
        except CheckpointError as incomplete:
            return CheckpointError(f"{store.path}: {incomplete}")
    return refused(store.path, store.config, error)
