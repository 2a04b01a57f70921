"""Directories that people take for a model's: what they are instead, by the names in them."""

from __future__ import annotations

import os
from pathlib import Path

from ders_core.errors import CheckpointError
from ders_core.files.address import Listing, is_remote
from ders_core.files.json_object import read_json
from ders_core.files.model_files import PICKLES
from ders_core.files.side_files import ADAPTERS

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
DATA_SUFFIXES = (".arrow", ".parquet", ".jsonl", ".csv")
UNFINISHED = ".ders-state.json"
MOST_NAMED = 3
"""Directories that a sentence lists."""

_OTHER_WEIGHTS = {
    ".gguf": "GGUF files of llama.cpp",
    ".distcp": "a distributed checkpoint of PyTorch",
    ".npz": "NumPy archives, as MLX writes them",
    ".h5": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".onnx": "an ONNX model",
}


def refuse_other_kind(directory: Path, listing: Listing) -> None:
    """Raise CheckpointError if a directory is recognisably no transformers model."""
    names = listing.names
    weights = any(name.endswith(".safetensors") and name not in ADAPTERS for name in names)
    if CONFIG in names and weights:
        return
    what = _without_weights(names) if not weights else None
    if CONFIG not in names:
        what = _without_config(directory, names) or what or _folders(directory)
    elif what is None and ADAPTER in names and not _has_pickles(names):
        what = _adapter(directory)
    if what is not None:
        raise CheckpointError(f"{directory} {what}")


def _without_config(directory: Path, names: frozenset[str]) -> str | None:
    if UNFINISHED in names:
        return (
            "is an unfinished output; finish it with the command that began it and --resume, or "
            "remove it"
        )
    if ADAPTER in names:
        return _adapter(directory)
    if "model_index.json" in names:
        return "is a diffusers pipeline, which has no experts; give a language model's directory"
    if names & {"modules.json", "config_sentence_transformers.json"}:
        return (
            "is a sentence-transformers model without its transformer's config.json; give the "
            "directory of the transformer, such as 0_Transformer"
        )
    if "params.json" in names:
        return (
            "is in its maker's own format (params.json); give the files for transformers, with a "
            "config.json"
        )
    return None


def _without_weights(names: frozenset[str]) -> str | None:
    for suffix, what in _OTHER_WEIGHTS.items():
        first = min((name for name in names if name.endswith(suffix)), default=None)
        if first is not None and not _has_pickles(names):
            return (
                f"holds {what} ({first}), which are not read here; give the model as safetensors "
                "files with a config.json"
            )
    if CONFIG in names:
        return None
    data = min((name for name in names if name.endswith(DATA_SUFFIXES)), default=None)
    named = names & {"dataset_info.json", "dataset_dict.json"}
    if data is not None or named:
        first = data or min(named)
        return f"is a data set ({first}) and no model; give a directory with config.json"
    return None


def _folders(directory: Path) -> str | None:
    """Of a directory without config.json: the directories below that may be meant."""
    if is_remote(directory):
        return None
    with os.scandir(directory) as entries:
        listed = [(entry.name, entry.is_dir()) for entry in entries]
    folders = {name for name, is_directory in listed if is_directory}
    if {"snapshots", "refs"} <= folders:
        below, within = directory / "snapshots", "is a folder of the hub's cache"
    else:
        below, within = directory, f"has no {CONFIG}"
    models = sorted(file.parent for file in below.glob(f"*/{CONFIG}"))
    if models:
        shown = ", ".join(map(str, models[:MOST_NAMED]))
        more = f" and {len(models) - MOST_NAMED} more" if models[MOST_NAMED:] else ""
        noun = "the directory below is a model" if len(models) == 1 else "those below are models"
        return f"{within}, but {noun}: {shown}{more}; give one of them"
    return f"is empty; give the directory of a model, with {CONFIG}" if not listed else None


def _has_pickles(names: frozenset[str]) -> bool:
    """Whether there are weights that can be converted."""
    return any(name.endswith(PICKLES) and name not in ADAPTERS for name in names)


def _adapter(directory: Path) -> str:
    return (
        f"is a LoRA adapter{_base_of_adapter(directory)} and no model; merge it into its base "
        "(peft's merge_and_unload(), then save_pretrained()) and give the merged directory"
    )


def _base_of_adapter(directory: Path) -> str:
    """` of NAME`, if the adapter says it."""
    if is_remote(directory):
        return ""
    try:
        name = read_json(directory / ADAPTER).get("base_model_name_or_path")
    except CheckpointError:
        return ""
    return f" of {name}" if isinstance(name, str) and name and name.isprintable() else ""
