"""All tensors of one directory of safetensors files, whatever model they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ders_core.checkpoint.header import NAMES, TensorInfo, read_header
from ders_core.errors import CheckpointError

INDEX = "model.safetensors.index.json"
PATCH_FILE = "ders_patch.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, ".gguf", ".h5", ".msgpack", ".onnx")
SAMPLE_BYTES = 256


@dataclass(frozen=True)
class TensorStore:
    """The tensors of a model directory by name; only headers have been read."""

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, tuple[str, ...]]  # file name -> tensor names in the order they lie on disk
    metadata: Mapping[str, Mapping[str, str]]  # file name -> free-form metadata of its header

    @classmethod
    def open(cls, path: str | Path) -> TensorStore:
        """Open a directory. Raises CheckpointError with one sentence if it is not a checkpoint."""
        directory = Path(path).expanduser()
        if not directory.exists():
            raise CheckpointError(f"{directory} does not exist; check the path")
        if not directory.is_dir():
            raise CheckpointError(f"{directory} is a file; give the directory that holds it")
        if (directory / PATCH_FILE).is_file():
            raise CheckpointError(
                f"{directory} is a patch and no model; bring it to its base with `ders apply`"
            )
        try:
            config = read_json(directory / "config.json")
            tensors: dict[str, TensorInfo] = {}
            files: dict[str, tuple[str, ...]] = {}
            metadata: dict[str, dict[str, str]] = {}
            for file in _weight_files(directory):
                found, metadata[file.name] = read_header(file)
                twice = tensors.keys() & found.keys()
                if twice:
                    raise CheckpointError(
                        f"tensor {min(twice)!r} is in {file.name} and in another file too; "
                        "remove the stale file or add an index"
                    )
                tensors.update(found)
                files[file.name] = tuple(
                    sorted(found, key=lambda name: (found[name].begin, found[name].end, name))
                )
            _check_index(directory, tensors)
        except OSError as error:
            raise CheckpointError(f"{directory}: cannot be read: {error}") from error
        return cls(directory, config, tensors, files, metadata)

    @property
    def bytes_total(self) -> int:
        """Bytes of the weight files on disk, headers included."""
        return sum((self.path / name).stat().st_size for name in self.files)

    @cached_property
    def identity(self) -> str:
        """A name for the content: hex SHA-256 of the config, the headers, and 256 bytes from the
        middle of each tensor. It survives copying and moving, and costs no full read."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for file_name in self.files:
            with open(self.path / file_name, "rb") as file:
                for name in self.files[file_name]:
                    info = self.tensors[name]
                    digest.update(f"{name}:{NAMES[info.dtype]}:{info.shape}".encode())
                    file.seek(max(info.begin, (info.begin + info.end - SAMPLE_BYTES) // 2))
                    digest.update(file.read(min(SAMPLE_BYTES, info.nbytes)))
        return digest.hexdigest()

    @cached_property
    def index_metadata(self) -> dict[str, Any]:
        """What the index of several shards says of them."""
        file = self.path / INDEX
        told = read_json(file).get("metadata") if file.is_file() else None
        return told if isinstance(told, dict) else {}

    def side_files(self) -> list[Path]:
        """Tokenizer, generation config and the like: what is neither weights nor config.json."""
        skip = ("config.json", INDEX)
        return sorted(
            file
            for file in self.path.iterdir()
            if file.is_file()
            and not file.name.startswith(".")
            and file.name not in skip
            and not file.name.endswith((*WEIGHT_SUFFIXES, ".index.json"))
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a CheckpointError that says what is wrong with it."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; is it a model directory?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        names = sorted({str(name) for name in _weight_map(index).values()})
        for name in names:
            if Path(name).name != name:
                raise CheckpointError(f"{INDEX} names {name!r}, which lies outside the directory")
            if not (directory / name).is_file():
                raise CheckpointError(
                    f"{INDEX} names {name!r}, which is missing; copy or download the file again"
                )
        return [directory / name for name in names]
    found = sorted(directory.glob("*.safetensors"))
    if found:
        return found
    pickles = sorted(file.name for file in directory.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{directory} holds only pickle weights ({pickles[0]}), which can run code when they "
            "are opened; convert them with transformers' save_pretrained() to safetensors first"
        )
    raise CheckpointError(f"{directory} holds no safetensors files; give a model directory")


def _weight_map(index: Path) -> dict[str, Any]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    return weight_map


def _check_index(directory: Path, tensors: Mapping[str, TensorInfo]) -> None:
    index = directory / INDEX
    if not index.is_file():
        return
    for name, file in _weight_map(index).items():
        info = tensors.get(name)
        if info is None or info.file.name != file:
            raise CheckpointError(
                f"{INDEX} says that {name!r} is in {file}, but it is not; the index and the "
                "shards are from different checkpoints"
            )
