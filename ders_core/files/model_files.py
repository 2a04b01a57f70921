"""Which files of a directory make up its model: transformers' rule, and nothing else.

The file that config.json names under `transformers_weights`, else model.safetensors, else the files
that the index names. Whatever else lies beside them is not the model: older shards, another
format's weights, an adapter (see `ders_core.files.side_files`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.address import Listing, is_remote
from ders_core.files.json_object import read_json
from ders_core.files.remote import is_plain_name
from ders_core.files.tensor import FileTensor

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
SUFFIX = ".safetensors"
NAMED = "transformers_weights"
"""The entry of config.json that names the weight file, or the index, for transformers."""

IMPORT_FIRST = "import ders_core.hf first, it reads this packed checkpoint.safetensors"
"""What a packed checkpoint names there: no file. transformers without this package then fails, and
says this, where it would give every expert random values otherwise. (`ders_core.hf` removes it.)"""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class ModelFiles:
    """names: of the weight files, sorted: where two hold the same tensor, the later one counts.
    index: the file that names them, or that only repeats what a single file says; None without one.
    weight_map: of the index, tensor -> file; empty if it was not followed. metadata: of the index.
    """

    names: tuple[str, ...]
    index: str | None
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    def check(self, held: Mapping[str, Mapping[str, FileTensor]]) -> None:
        """Raise CheckpointError if a file holds nothing of what the index says that it holds.

        held: file -> its tensors. A single entry that no file holds is left over from a save (a
        tied lm_head, an old buffer): transformers does not look at it either.
        """
        firsts: dict[str, str] = {}
        unseen = set(self.weight_map.values())
        for name, file in self.weight_map.items():
            firsts.setdefault(file, name)
            if file in unseen and name in held[file]:
                unseen.remove(file)
                if not unseen:
                    break
        for file in filter(unseen.__contains__, held):
            raise CheckpointError(
                f"{self.index} says that {firsts[file]!r} is in {file}, but it holds nothing of "
                "what the index says; the index and the shards are from different checkpoints"
            )


def model_files(directory: Path, listing: Listing, config: Mapping[str, Any]) -> ModelFiles:
    """Raises CheckpointError if the directory holds no model, a file of it is missing, or a name
    leads out of the directory."""
    named = config.get(NAMED)
    if named is not None and named != IMPORT_FIRST:
        if not isinstance(named, str) or not named.endswith((SUFFIX, f"{SUFFIX}.index.json")):
            raise CheckpointError(
                f"{directory / 'config.json'}: {NAMED} is {named!r}, not the name of a safetensors "
                "file or of an index"
            )
        _check_name(directory, listing, named, "config.json")
        return _indexed(directory, listing, named) if named.endswith(".json") else _single(named)
    if SINGLE in listing.names:
        return _single(SINGLE, INDEX if _repeats(directory, listing) else None)
    if INDEX in listing.names:
        return _indexed(directory, listing, INDEX)
    raise CheckpointError(_absence(directory, listing))


def index_name(config: Mapping[str, Any], files: Collection[str]) -> str | None:
    """The name of the index of a model with these weight files; None if it needs none."""
    named = config.get(NAMED)
    if isinstance(named, str) and named != IMPORT_FIRST:
        return named if named.endswith(".json") else None
    return None if list(files) == [SINGLE] else INDEX


def _single(name: str, index: str | None = None) -> ModelFiles:
    return ModelFiles((name,), index, {}, {})


def _repeats(directory: Path, listing: Listing) -> bool:
    """Whether the index, if there is one, names the single file and no other."""
    if INDEX not in listing.names:
        return False
    try:
        weight_map = read_json(directory / INDEX).get("weight_map")
    except CheckpointError:  # nobody reads it
        return False
    return isinstance(weight_map, dict) and set(map(str, weight_map.values())) == {SINGLE}


def _indexed(directory: Path, listing: Listing, index: str) -> ModelFiles:
    content = read_json(directory / index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / index} has no weight_map; download it again")
    files = weight_map
    if set(map(type, files.values())) != {str}:
        files = {name: str(file) for name, file in weight_map.items()}
    names = sorted(set(files.values()))
    for name in names:
        _check_name(directory, listing, name, index)
    metadata = content.get("metadata")
    return ModelFiles(tuple(names), index, files, metadata if isinstance(metadata, dict) else {})


def _check_name(directory: Path, listing: Listing, name: str, named_by: str) -> None:
    if Path(name).name != name or (is_remote(directory) and not is_plain_name(name)):
        raise CheckpointError(f"{named_by} names {name!r}, which lies outside the directory")
    if listing.complete and name not in listing.names:
        raise CheckpointError(
            f"{named_by} names {name!r}, which is missing; copy or download the file again"
        )


def _absence(directory: Path, listing: Listing) -> str:
    """Why there is no model, by what there is instead."""
    names = sorted(listing.names)
    shards = [name for name in names if name.endswith(SUFFIX)]
    if shards:
        return (
            f"{directory} holds {shards[0]}, but neither {SINGLE} nor {INDEX}, which say what "
            "belongs to the model; copy the index from where the files are from"
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"{directory} holds only pickle weights ({pickles[0]}), which can run code when they "
            "are opened; convert them with transformers' save_pretrained() to safetensors first"
        )
    return f"{directory} holds no safetensors files; give a model directory"
