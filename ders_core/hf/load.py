"""Load a model or its tokenizer from a directory: original, dense or packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
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
from ders_core.files.stand_ins import START_BYTES, is_pointer, stand_in
from ders_core.files.store import TensorStore
from ders_core.hf.silence import silent
from ders_core.packed.open import is_packed, open_checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""What AutoTokenizer reads, or most of it."""


def load_model(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model from an original, dense or packed directory, in evaluation mode.

    Packed experts are synthesized while they load (see `ders_core.hf.plugin`). dtype: by default
    the checkpoint's. Threads load one after another.
    Raises CheckpointError if the directory is damaged, or its tensors are not those of the model
    that its config describes; DersError if the device is absent or too small.
    """
    where = resolve_device(device)
    store = TensorStore.open(as_local(path))
    with silent():
        try:
            model, loading_info = _model_class(store.config).from_pretrained(
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
            raise CheckpointError(f"{store.path}: {_cause(store, error)}") from error
    _check_keys(store.path, loading_info)
    return model.eval()


def _model_class(config: dict[str, Any]) -> Any:
    """transformers' class of the model if the config names one, else that of causal LMs."""
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    model_class = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
        described = getattr(getattr(model_class, "config_class", None), "model_type", None)
        if described == config.get("model_type") and not config.get("auto_map"):
            return model_class
    return AutoModelForCausalLM


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
    with silent():
        try:
            return AutoTokenizer.from_pretrained(
                directory, trust_remote_code=trust_remote_code, local_files_only=True
            )
        except Exception as error:  # transformers fails in many ways on such files
            raise CheckpointError(
                f"{directory} has no tokenizer that transformers can read; copy the original's "
                "tokenizer files next to the weights"
            ) from error


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


def _cause(store: TensorStore, error: Exception) -> str:
    """Why loading failed: our sentence if the experts are incomplete, else the error's."""
    if not is_packed(store.path) and recognise(store.path, store.config, store.specs) is not None:
        try:
            open_checkpoint(store.path)
        except CheckpointError as incomplete:
            return str(incomplete)
    text = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    return f"transformers {transformers.__version__} cannot load this model: {text}"
