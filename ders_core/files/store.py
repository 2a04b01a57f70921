"""The tensors of a model directory by name, local or at an address; knows no kind of model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

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
from ders_core.files.header import read_header
from ders_core.files.other_kinds import refuse_other_kind
from ders_core.files.remote import concurrently, is_plain_name
from ders_core.files.spec import NAMES, TensorSpec
from ders_core.files.stand_ins import START_BYTES, stand_in
from ders_core.files.tensor import FileTensor, TensorReader

T = TypeVar("T")

INDEX = "model.safetensors.index.json"
PATCH_FILE = "ders_patch.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, ".gguf", ".h5", ".msgpack", ".onnx")
SAMPLE_BYTES = 256


class Store(Protocol):
    """A model's tensors and descriptions, wherever they are read from. Opening reads headers only.

    `TensorStore` reads them from a directory; a packed checkpoint offers the model that it
    replaces as a store too.
    """

    @property
    def place(self) -> str:
        """The path or address that was opened. An address may hold credentials: never print it."""

    @property
    def path(self) -> Path:
        """The directory, without credentials."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""

    @property
    def config_text(self) -> str:
        """config.json as text."""

    @property
    def tensors(self) -> Mapping[str, TensorReader]: ...

    @property
    def files(self) -> Mapping[str, tuple[str, ...]]:
        """Weight file -> the names of its tensors, in the order of their bytes."""

    @property
    def metadata(self) -> Mapping[str, Mapping[str, str]]:
        """Weight file -> the free-form metadata of its header."""

    @property
    def index_metadata(self) -> Mapping[str, Any]:
        """The metadata of the index; empty if there is no index."""

    @property
    def bytes_total(self) -> int:
        """Bytes of the weight files, headers included."""

    @property
    def packed_bytes(self) -> int | None:
        """Bytes of the packed weight files from which the tensors are computed; None if they are
        in files as they are."""

    @property
    def identity(self) -> str:
        """A hex name of the content (see `content_identity`)."""

    def side_files(self) -> list[Path]:
        """Tokenizer, generation config and the like: neither weights nor config.json."""

    def check(self, step: Callable[[int, str], None]) -> None:
        """Compare every tensor with its checksum, where checksums are known.

        step: called with the bytes of each tensor read, and a message. Raises CheckpointError if
        one differs.
        """


@dataclass(frozen=True)
class TensorStore:
    """The store of a directory of safetensors files."""

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, FileTensor]
    files: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, Mapping[str, str]]
    index_metadata: Mapping[str, Any]
    bytes_total: int
    place: str = field(repr=False)

    @classmethod
    def open(cls, place: str | Path) -> TensorStore:
        """Open a local directory, or one at an address (see `as_path`).

        Raises CheckpointError with one sentence if it is not a checkpoint or cannot be reached.
        """
        directory = as_path(place)
        try:
            listing = list_files(directory)
            if PATCH_FILE in listing.names:
                raise CheckpointError(
                    f"{directory} is a patch and no model; bring it to its base with `ders apply`"
                )
            refuse_other_kind(directory, listing)
            config = read_json(directory / "config.json")
            index = read_json(directory / INDEX) if INDEX in listing.names else None
            weight_map = _weight_map(directory / INDEX, index) if index is not None else {}
            paths = [directory / name for name in _weight_files(directory, listing, weight_map)]
            sizes = list(_each(directory, file_size, paths))
            headers = _each(directory, read_header, paths, sizes)
            tensors: dict[str, FileTensor] = {}
            files: dict[str, tuple[str, ...]] = {}
            metadata: dict[str, dict[str, str]] = {}
            for file, (header, metadata[file.name]) in zip(paths, headers, strict=True):
                twice = tensors.keys() & header.keys()
                if twice:
                    raise CheckpointError(
                        f"tensor {min(twice)!r} is in {file.name} and in another file too; "
                        "remove the stale file or add an index"
                    )
                tensors.update(header)
                order = sorted(header.values(), key=lambda info: (info.begin, info.end, info.name))
                files[file.name] = tuple(info.name for info in order)
            _check_index(weight_map, tensors)
        except OSError as error:
            raise CheckpointError(f"{directory}: cannot be read: {error}") from error
        index_metadata = (index or {}).get("metadata")
        return cls(
            directory,
            config,
            tensors,
            files,
            metadata,
            index_metadata if isinstance(index_metadata, dict) else {},
            sum(sizes),
            str(place),
        )

    @property
    def config_text(self) -> str:
        return read_bytes(self.path / "config.json").decode("utf-8")

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Dtype and shape of every tensor, by name."""
        return {name: tensor.spec for name, tensor in self.tensors.items()}

    @property
    def packed_bytes(self) -> None:
        return None

    @cached_property
    def identity(self) -> str:
        return content_identity(self.config, self._samples())

    def _samples(self) -> Iterator[tuple[str, TensorSpec, bytes]]:
        for file_name, names in self.files.items():
            infos = [self.tensors[name] for name in names]
            ranges = [middle(info.begin, info.end) for info in infos]
            samples = read_ranges(self.path / file_name, ranges)
            for info, sample in zip(infos, samples, strict=True):
                yield info.name, info.spec, sample

    def check(self, step: Callable[[int, str], None]) -> None:
        """Checksums are known of packed checkpoints only."""

    def side_files(self) -> list[Path]:
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
    """Hex SHA-256 of the config, the headers, and 256 bytes from the middle of each tensor.

    It survives copying and moving, and costs no full read. samples: (name, dtype and shape, bytes
    of the range `middle`) of each tensor, in the order in which the files hold them.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, spec, sample in samples:
        digest.update(f"{name}:{NAMES[spec.dtype]}:{spec.shape}".encode())
        digest.update(sample)
    return digest.hexdigest()


def middle(begin: int, end: int) -> tuple[int, int]:
    """The byte range that is sampled of a tensor at the bytes `begin` … `end`."""
    first = max(begin, (begin + end - SAMPLE_BYTES) // 2)
    return first, first + min(SAMPLE_BYTES, end - begin)


def _each(directory: Path, function: Callable[..., T], *columns: Sequence[Any]) -> Iterable[T]:
    """`function` of each row; several at once for a remote directory, where each waits."""
    if not is_remote(directory):
        return map(function, *columns)
    return concurrently(lambda row: function(*row), list(zip(*columns, strict=True)))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError if it is missing or anything else."""
    if not is_remote(path) and not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; is it a model directory?")
    content = read_bytes(path)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        known = stand_in(content[:START_BYTES]) if content[:1] not in (b"{", b"[") else None
        raise CheckpointError(f"{path} {known or f'is not valid JSON: {error}'}") from error
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
    shards = sorted(name for name in listing.names if name.endswith(".safetensors"))
    if shards:
        return shards
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


def _check_index(weight_map: Mapping[str, Any], tensors: Mapping[str, FileTensor]) -> None:
    for name, file in weight_map.items():
        info = tensors.get(name)
        if info is None or info.file.name != file:
            raise CheckpointError(
                f"{INDEX} says that {name!r} is in {file}, but it is not; the index and the "
                "shards are from different checkpoints"
            )
