"""The tensors of a model directory by name, local or at an address; knows no kind of model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import lt
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ders_core.errors import CheckpointError
from ders_core.files.address import (
    as_path,
    is_remote,
    list_files,
    list_tree,
    read_bytes,
    read_ranges,
)
from ders_core.files.content import content_hash
from ders_core.files.few_collections import few_collections
from ders_core.files.header import read_header
from ders_core.files.inputs import hold, hold_files
from ders_core.files.json_object import read_json
from ders_core.files.links import check_config
from ders_core.files.missing import printable
from ders_core.files.model_files import INDEX, model_files
from ders_core.files.other_kinds import refuse_other_kind
from ders_core.files.remote import concurrently
from ders_core.files.side_files import Beside, beside, is_read_with_weights
from ders_core.files.spec import TensorSpec
from ders_core.files.stamp import Stamp, check_unchanged, stamp, version_of
from ders_core.files.tensor import FileTensor, TensorReader

T = TypeVar("T")

PATCH_FILE = "ders_patch.json"
SAMPLE_BYTES = 256
DESCRIPTIONS = frozenset(("config.json", INDEX, "ders_manifest.json", "ders_layout.yaml"))
"""Files that say how the weights are read."""


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
    def metadata(self) -> Mapping[str, Mapping[str, str] | None]:
        """Weight file -> the free-form metadata of its header (see `read_header`)."""

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
        """A hex name of the content (see `content_identity`), by a sample of its bytes: for people,
        and to find what may belong to it. `content` decides."""

    @property
    def version(self) -> str:
        """A hex name of the files as they were when they were opened (see `version_of`)."""

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written since the store was opened."""

    def hold(self) -> None:
        """Hold the files for the work that goes on (`ders_core.files.inputs`), as they were when
        the store was opened; opening it during the work does that too. Raises CheckpointError."""

    def content(self, step: Callable[[int, str], None]) -> str:
        """Hex SHA-256 of everything (see `content_hash`). Reads all, once for each version.

        step: as of `check`. Raises CheckpointError.
        """

    @property
    def beside(self) -> Beside:
        """Tokenizer, generation config and the like, and weights that are not the model's."""

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
    metadata: Mapping[str, Mapping[str, str] | None]
    index_metadata: Mapping[str, Any]
    bytes_total: int
    place: str = field(repr=False)
    index: str | None
    """The file that names the weight files; None if there is none."""
    stamps: Mapping[str, Stamp] = field(repr=False)

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
            check_config(directory / "config.json", config)
            model = model_files(directory, listing, config)
            paths = [directory / name for name in model.names]
            described = sorted(listing.names & {*DESCRIPTIONS, model.index})
            stamped = [*paths, *(directory / name for name in described)]
            stamps = dict(
                zip([p.name for p in stamped], _each(directory, stamp, stamped), strict=True)
            )
            sizes = [stamps[path.name].size for path in paths]
            with few_collections():
                headers = list(_each(directory, read_header, paths, sizes))
        except OSError as error:
            where = printable(error.filename or directory)
            raise CheckpointError(f"{where}: cannot be read: {error.strerror or error}") from error
        held = {name: header for name, (header, _) in zip(model.names, headers, strict=True)}
        model.check(held)
        tensors: dict[str, FileTensor] = {}
        for header in held.values():
            tensors |= header
        store = cls(
            directory,
            config,
            tensors,
            {file: _in_order(header, tensors) for file, header in held.items()},
            {file: metadata for file, (_, metadata) in zip(model.names, headers, strict=True)},
            model.metadata,
            sum(sizes),
            str(place),
            model.index,
            stamps,
        )
        store.hold()
        return store

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
        with few_collections():
            return content_identity(self.config, self._samples())

    @cached_property
    def version(self) -> str:
        return version_of(self.stamps)

    def check_unchanged(self) -> None:
        check_unchanged(self.path, self.stamps)

    def hold(self) -> None:
        hold(self.path, self.stamps)

    def content(self, step: Callable[[int, str], None] = lambda nbytes, message: None) -> str:
        tensors = {
            file: tuple(self.tensors[name] for name in names) for file, names in self.files.items()
        }
        return content_hash(self.path, self.config, tensors, self.stamps, step)

    def _samples(self) -> Iterator[tuple[str, TensorSpec, bytes]]:
        for file_name, names in self.files.items():
            infos = [self.tensors[name] for name in names]
            ranges = [middle(info.begin, info.end) for info in infos]
            samples = read_ranges(self.path / file_name, ranges)
            for info, sample in zip(infos, samples, strict=True):
                yield info.name, info.spec, sample

    def check(self, step: Callable[[int, str], None]) -> None:
        """Checksums are known of packed checkpoints only."""

    @property
    def beside(self) -> Beside:
        """Listed at every call: files come and go. Those that change what the model does are held
        (`ders_core.files.inputs`)."""
        used = {"config.json", *self.files, *([self.index] if self.index else ())}
        found = beside(self.path, list_tree(self.path), used)
        hold_files(file.path for file in found.files if is_read_with_weights(file.name))
        return found


def content_identity(
    config: Mapping[str, Any], samples: Iterable[tuple[str, TensorSpec, bytes]]
) -> str:
    """Hex SHA-256 of the config, the headers, and 256 bytes from the middle of each tensor.

    It survives copying and moving, and costs no full read. samples: (name, dtype and shape, bytes
    of the range `middle`) of each tensor, in the order in which the files hold them.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    described: dict[int, tuple[TensorSpec, str]] = {}  # with the spec, so that no other has its id
    for name, spec, sample in samples:
        known = described.get(id(spec))
        if known is None:
            known = described[id(spec)] = spec, ":{}:{}".format(*spec.stored)
        digest.update((name + known[1]).encode() + sample)
    return digest.hexdigest()


def middle(begin: int, end: int) -> tuple[int, int]:
    """The byte range that is sampled of a tensor at the bytes `begin` … `end`."""
    if end - begin <= SAMPLE_BYTES:
        return begin, end
    first = (begin + end - SAMPLE_BYTES) // 2
    return first, first + SAMPLE_BYTES


def _in_order(
    header: Mapping[str, FileTensor], tensors: Mapping[str, FileTensor]
) -> tuple[str, ...]:
    """The names of those of a file's tensors that are read from it, in the order of their bytes."""
    there = [tensor for name, tensor in header.items() if tensors[name] is tensor]
    begins = [tensor.begin for tensor in there]
    if all(map(lt, begins, begins[1:])):  # as in most files
        return tuple(tensor.name for tensor in there)
    return tuple(
        tensor.name for tensor in sorted(there, key=lambda info: (info.begin, info.end, info.name))
    )


def _each(directory: Path, function: Callable[..., T], *columns: Sequence[Any]) -> Iterable[T]:
    """`function` of each row; several at once for a remote directory, where each waits."""
    if not is_remote(directory):
        return map(function, *columns)
    return concurrently(lambda row: function(*row), list(zip(*columns, strict=True)))
