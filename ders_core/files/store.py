"""All tensors of one directory of safetensors files, wherever it lies, whatever model they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ders_core.errors import CheckpointError
from ders_core.files.address import (
    Listing,
    as_path,
    file_size,
    is_remote,
    list_files,
    read_bytes,
    read_ranges,
)
from ders_core.files.header import TensorInfo, read_header
from ders_core.files.remote import concurrently, is_plain_name
from ders_core.files.spec import NAMES, TensorSpec

T = TypeVar("T")

INDEX = "model.safetensors.index.json"
PATCH_FILE = "ders_patch.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, ".gguf", ".h5", ".msgpack", ".onnx")
SAMPLE_BYTES = 256


@dataclass(frozen=True)
class TensorStore:
    """The tensors of a model directory by name; only headers have been read.

    index_metadata: what the index of several shards says of them. bytes_total: of the weight files,
    headers included.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, tuple[str, ...]]  # file name -> tensor names in the order they lie on disk
    metadata: Mapping[str, Mapping[str, str]]  # file name -> free-form metadata of its header
    index_metadata: Mapping[str, Any]
    bytes_total: int

    @classmethod
    def open(cls, path: str | Path) -> TensorStore:
        """Open a local directory, or one elsewhere by its address (see `as_path`).

        Raises CheckpointError with one sentence if it is not a checkpoint or cannot be reached.
        """
        directory = as_path(path)
        try:
            listing = list_files(directory)
            if PATCH_FILE in listing.names:
                raise CheckpointError(
                    f"{directory} is a patch and no model; bring it to its base with `ders apply`"
                )
            config = read_json(directory / "config.json")
            index = read_json(directory / INDEX) if INDEX in listing.names else None
            weight_map = _weight_map(directory / INDEX, index) if index is not None else {}
            paths = [directory / name for name in _weight_files(directory, listing, weight_map)]
            sizes = list(_each(directory, file_size, paths))
            headers = _each(directory, read_header, paths, sizes)
            tensors: dict[str, TensorInfo] = {}
            files: dict[str, tuple[str, ...]] = {}
            metadata: dict[str, dict[str, str]] = {}
            for file, (found, metadata[file.name]) in zip(paths, headers, strict=True):
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
            _check_index(weight_map, tensors)
        except OSError as error:
            raise CheckpointError(f"{directory}: cannot be read: {error}") from error
        told = (index or {}).get("metadata")
        return cls(
            directory,
            config,
            tensors,
            files,
            metadata,
            told if isinstance(told, dict) else {},
            sum(sizes),
        )

    @property
    def config_text(self) -> str:
        """The text of config.json."""
        return read_bytes(self.path / "config.json").decode("utf-8")

    @property
    def packed_bytes(self) -> int | None:
        """Bytes of the weight files on disk where they are packed; None where they are as told."""
        return None

    def check(self, step: Callable[[int, str], None]) -> None:
        """Raise CheckpointError if a tensor differs from its checksum, where checksums are known.

        step: called with the bytes of each tensor read, and what is being read.
        """

    @cached_property
    def identity(self) -> str:
        """A name for the content: hex SHA-256 of the config, the headers, and 256 bytes from the
        middle of each tensor. It survives copying and moving, and costs no full read."""
        return content_identity(self.config, self._samples())

    def _samples(self) -> Iterator[tuple[str, TensorSpec, bytes]]:
        for file_name, names in self.files.items():
            infos = [self.tensors[name] for name in names]
            ranges = [middle(info.begin, info.end) for info in infos]
            samples = read_ranges(self.path / file_name, ranges)
            for info, sample in zip(infos, samples, strict=True):
                yield info.name, info.spec, sample

    def side_files(self) -> list[Path]:
        """Tokenizer, generation config and the like: what is neither weights nor config.json."""
        skip = ("config.json", INDEX)
        return sorted(
            self.path / name
            for name in list_files(self.path).names
            if not name.startswith(".")
            and name not in skip
            and not name.endswith((*WEIGHT_SUFFIXES, ".index.json"))
        )


def content_identity(
    config: Mapping[str, Any], samples: Iterable[tuple[str, TensorSpec, bytes]]
) -> str:
    """See `TensorStore.identity`. samples: of each tensor in the order in which they lie: its name,
    dtype and shape, and the bytes from its middle."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, spec, sample in samples:
        digest.update(f"{name}:{NAMES[spec.dtype]}:{spec.shape}".encode())
        digest.update(sample)
    return digest.hexdigest()


def middle(begin: int, end: int) -> tuple[int, int]:
    """The range of the bytes that stand for a tensor which lies in such a range."""
    first = max(begin, (begin + end - SAMPLE_BYTES) // 2)
    return first, first + min(SAMPLE_BYTES, end - begin)


def _each(directory: Path, function: Callable[..., T], *columns: Sequence[Any]) -> Iterable[T]:
    """`function` of each row; many at once where each is a walk over the network."""
    if not is_remote(directory):
        return map(function, *columns)
    return concurrently(lambda row: function(*row), list(zip(*columns, strict=True)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a CheckpointError that says what is wrong with it."""
    if not is_remote(path) and not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; is it a model directory?")
    try:
        value = json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def _weight_files(directory: Path, listing: Listing, weight_map: Mapping[str, Any]) -> list[str]:
    if weight_map:
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            plain = not is_remote(directory) or is_plain_name(name)
            if Path(name).name != name or not plain:
                raise CheckpointError(f"{INDEX} names {name!r}, which lies outside the directory")
            if listing.complete and name not in listing.names:
                raise CheckpointError(
                    f"{INDEX} names {name!r}, which is missing; copy or download the file again"
                )
        return names
    found = sorted(name for name in listing.names if name.endswith(".safetensors"))
    if found:
        return found
    pickles = sorted(name for name in listing.names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise CheckpointError(
            f"{directory} holds only pickle weights ({pickles[0]}), which can run code when they "
            "are opened; convert them with transformers' save_pretrained() to safetensors first"
        )
    raise CheckpointError(f"{directory} holds no safetensors files; give a model directory")


def _weight_map(path: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map; download it again")
    return weight_map


def _check_index(weight_map: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    for name, file in weight_map.items():
        info = tensors.get(name)
        if info is None or info.file.name != file:
            raise CheckpointError(
                f"{INDEX} says that {name!r} is in {file}, but it is not; the index and the "
                "shards are from different checkpoints"
            )
