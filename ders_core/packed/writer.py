"""Write a packed checkpoint: the one way from contents in memory or on disk to its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ders_core.compute.progress import Advance, counted, uncounted
from ders_core.files.model_files import IMPORT_FIRST, INDEX, NAMED, index_name
from ders_core.files.side_files import SideFile, copy_side_files
from ders_core.files.spec import TensorSpec
from ders_core.files.store import content_identity, middle
from ders_core.files.writer import (
    METADATA,
    Specs,
    file_bytes,
    file_names,
    json_text,
    shards,
    write_file,
    write_index,
    write_json,
)
from ders_core.later import torch
from ders_core.packed.manifest import (
    BASE_MODEL,
    FORMAT_VERSION,
    Encoded,
    Manifest,
    Repair,
    Source,
    described,
    public_recipe,
)
from ders_core.packed.names import MANIFEST
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup, PackedTensor
from ders_core.recipe import Recipe

UNKNOWN = ""
"""The identity of a source that is not on a disk, until it is computed from the written files."""

CheckWritten = Callable[[str, str], None]
"""`check(name, sha256)` is called for each tensor on disk; it raises if the bytes are wrong."""


class TensorBytes(Protocol):
    """A tensor to write: its dtype and shape, and its bytes when they are needed."""

    @property
    def spec(self) -> TensorSpec: ...

    def raw(self) -> Iterable[bytes | memoryview]:
        """The bytes in chunks."""


@dataclass(frozen=True, kw_only=True)
class PackedDescription:
    """What a packed checkpoint has beside its weight files."""

    groups: Sequence[PackedGroup]
    source: Source
    """The checkpoint that the packed one replaces; see `source_on_no_disk`."""
    layout: str
    """The family of the source's layout."""
    config: Mapping[str, Any]
    """The source's config.json."""
    recipe: Recipe
    side_files: Sequence[SideFile]
    """Copied as they are: tokenizer, generation config and the like."""
    hub_name: str | None = None
    """`owner/repo` of the source on the hub, if it is from there."""
    others: Sequence[PackedTensor] = ()
    """The coded tensors outside the experts."""
    encoded: Mapping[str, Encoded] = field(default_factory=dict)
    """Prefix of a group or another tensor -> what it was encoded from; empty if the source is on no
    disk."""
    repairs: Sequence[Repair] = ()
    """What was trained after the packing."""


class PackedFile(NamedTuple):
    """A weight file. names: of its tensors, in their order. header: its bytes at least."""

    names: Sequence[str]
    header: int


@dataclass(frozen=True, kw_only=True)
class PackedContents(PackedDescription):
    """Everything that a packed checkpoint holds, before a byte of it is written."""

    tensors: Mapping[str, TensorBytes]
    files: Sequence[PackedFile] = ()
    """Without any, shards are filled in the order of `tensors`; within a shard, wide dtypes come
    first, then names."""


@dataclass(frozen=True)
class Written:
    """checksums: hex SHA-256 of each tensor. bytes_total: of the weight files."""

    checksums: Mapping[str, str]
    bytes_total: int


def write_packed(
    directory: Path,
    contents: PackedContents,
    *,
    advance: Advance = uncounted,
    check: CheckWritten | None = None,
) -> Written:
    """Write weight files, index, side files, config.json and manifest into `directory`.

    The directory exists; files of the same names are replaced. The bytes depend on the contents
    alone. One chunk of one tensor is in memory at a time, besides what the contents hold.
    advance: counts the bytes of tensors as they are written. check: called with every tensor of a
    weight file once the file is written. Raises what `check` and the tensors' `raw` raise.
    """
    specs_of = {name: tensor.spec for name, tensor in contents.tensors.items()}
    parts = contents.files or [PackedFile([*specs], 0) for specs in shards(specs_of).values()]
    files = dict[str, Specs]()
    checksums: dict[str, str] = {}
    for file, part in zip(file_names(len(parts)), parts, strict=True):
        files[file] = {name: specs_of[name] for name in part.names}

        def read(name: str, file: str = file) -> Iterator[bytes | memoryview]:
            return counted(contents.tensors[name].raw(), advance, f"writing {file}")

        written = write_file(
            directory / file, files[file], read, METADATA, header_bytes=part.header
        )
        for name, sha256 in written.items():
            if check is not None:
                check(name, sha256)
        checksums |= written
    return finish_packed(directory, contents, files, checksums)


def finish_packed(
    directory: Path,
    description: PackedDescription,
    files: Mapping[str, Specs],
    checksums: Mapping[str, str],
) -> Written:
    """Write everything but the weight files, which lie in `directory`: as of `write_packed`.

    files: their tensors, in their order. checksums: hex SHA-256 of each tensor, in any order.
    """
    ordered = {name: checksums[name] for specs in files.values() for name in specs}
    if len(files) > 1 or index_name({}, description.source.files) is not None:
        write_index(directory / INDEX, files)  # where the source has one, tools look for one
    copy_side_files(description.side_files, directory)
    _write_config(directory, description)
    _write_manifest(directory, description, ordered)
    return Written(ordered, sum((directory / file).stat().st_size for file in files))


def source_on_no_disk(tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> Source:
    """A source that exists only as the packed checkpoint that replaces it, as an upcycled MoE does.

    tensors: dtype and shape of each tensor, in order. config: the source's config.json.
    `write_packed` computes its identity.
    """
    files = shards(tensors)
    return Source(
        identity=UNKNOWN,
        bytes_total=sum(file_bytes(specs, METADATA) for specs in files.values()),
        files={name: tuple(specs) for name, specs in files.items()},
        metadata={file: dict(METADATA) for file in files},
        config=json_text(config),
    )


def _write_config(directory: Path, description: PackedDescription) -> None:
    """config.json of the source, how it was packed under `quantization_config`, and a name that
    keeps transformers from loading it without `ders_core.hf`."""
    quantization = described(FORMAT_VERSION, public_recipe(description.recipe))
    if "quantization_config" in description.config:  # null too, so that it comes back
        quantization["original"] = description.config["quantization_config"]
    if description.hub_name is not None:
        quantization[BASE_MODEL] = description.hub_name
    if NAMED in description.config:
        quantization[NAMED] = description.config[NAMED]
    config = {**description.config, "quantization_config": quantization, NAMED: IMPORT_FIRST}
    write_json(directory / "config.json", config)


def _write_manifest(
    directory: Path, description: PackedDescription, checksums: Mapping[str, str]
) -> None:
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        layout=description.layout,
        source=description.source,
        recipe=public_recipe(description.recipe),
        groups=tuple(description.groups),
        others=tuple(description.others),
        checksums=dict(checksums),
        encoded=dict(description.encoded),
        repairs=tuple(description.repairs),
    )
    write_json(directory / MANIFEST, manifest.model_dump(mode="json"))
    if description.source.identity == UNKNOWN:
        identity = content_identity(description.config, _samples(PackedCheckpoint(directory)))
        source = description.source.model_copy(update={"identity": identity})
        manifest = manifest.model_copy(update={"source": source})
        write_json(directory / MANIFEST, manifest.model_dump(mode="json"))


def _samples(packed: PackedCheckpoint) -> Iterator[tuple[str, TensorSpec, bytes]]:
    """What `content_identity` asks for, of the tensors of the checkpoint that was replaced."""
    for name in packed.original.names():
        spec = packed.original.spec(name)
        begin, end = middle(0, spec.nbytes)
        raw = packed.original.read(name).contiguous().reshape(-1).view(torch.uint8)
        yield name, spec, raw[begin:end].numpy().tobytes()
