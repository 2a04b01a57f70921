"""Write the description of a directory: its manifest, tensors that travel, and side files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ders_core.compute.progress import Advance, counted
from ders_core.errors import CheckpointError
from ders_core.files.checksum import checksum, file_checksum
from ders_core.files.header import read_header
from ders_core.files.inputs import hold_files
from ders_core.files.side_files import SideFile, copy_side_files
from ders_core.files.store import PATCH_FILE, TensorStore
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import METADATA, file_order, shards, write_file, write_json
from ders_core.packed.patch.manifest import FORMAT_VERSION, SIDE, Kind, PatchManifest, PatchTensor

STEM = "patch"
"""The files of travelling tensors are named as shards are, with this instead of `model`."""

Content = tuple[str, tuple[int, ...], str]
"""(dtype, shape, SHA-256) of a tensor: equal if the tensors are equal, whatever their names."""


def content(info: FileTensor, sha256: str) -> Content:
    return *info.spec.stored, sha256


def tensor_checksums(
    tensors: Mapping[str, FileTensor], known: Mapping[str, str], advance: Advance
) -> dict[str, str]:
    """The checksum of every tensor by name; those that are `known` are not computed again."""
    checksums = {}
    for name, info in tensors.items():
        checksums[name] = known.get(name) or checksum(info)
        advance(info.nbytes, f"reading {info.file.name}")
    return checksums


def describe(
    directory: Path,
    store: TensorStore,
    checksums: Mapping[str, str],
    elsewhere: Callable[[str, Content], str | None],
    advance: Advance,
    *,
    kind: Kind,
    base: TensorStore | None,
) -> PatchManifest:
    """Write the description of `store` into `directory`, which exists.

    checksums: of every tensor. elsewhere(name, content): the tensor's name in the other checkpoint,
    None if it must travel. base: the checkpoint that the description is made against; None if any
    that has the tensors will do. advance: counts the bytes of travelling tensors. Raises
    CheckpointError if a travelling tensor differs from its checksum, or a name cannot be written.
    """
    manifest = PatchManifest(
        format_version=FORMAT_VERSION,
        kind=kind,
        identity=store.identity,
        base=base.identity if base else None,
        base_name=base.path.name if base else None,
        files=_tensors_by_file(store),
        metadata={
            name: None if values is None else dict(values)
            for name, values in store.metadata.items()
        },
        side=_copy_side_files(store, directory / SIDE),
        pieces={
            name: PatchTensor(
                dtype=info.spec.stored[0],
                shape=info.spec.stored[1],
                sha256=checksums[name],
                name=elsewhere(name, content(info, checksums[name])),
            )
            for name, info in store.tensors.items()
        },
    )
    if not manifest.consistent:
        raise CheckpointError(
            f"{store.path} has a file or a tensor with a name that no {kind} can hold; rename it"
        )
    _write_travelling(directory, manifest, store, checksums, advance)
    write_json(directory / PATCH_FILE, manifest.model_dump(mode="json"))
    return manifest


def travelling_tensors(directory: Path, manifest: PatchManifest) -> dict[str, FileTensor]:
    """Where the travelling tensors are stored, by name."""
    tensors: dict[str, FileTensor] = {}
    if manifest.travelling:
        for file in sorted(directory.glob(f"{STEM}*.safetensors")):
            if file.is_file():
                hold_files([file])
                tensors |= read_header(file)[0]
    return tensors


def copy_with_checksum(file: SideFile, directory: Path) -> str:
    """Copy a file by content, into the same folder; returns the hex SHA-256 of the copy."""
    copy_side_files([file], directory)
    return file_checksum(directory / file.name)


def reader(
    tensors: Mapping[str, FileTensor], advance: Advance, message: str
) -> Callable[[str], Iterable[bytes | memoryview]]:
    """How `write_file` reads tensors; the bytes are counted."""
    return lambda name: counted(tensors[name].raw(), advance, message)


def _copy_side_files(store: TensorStore, directory: Path) -> dict[str, str]:
    """Copy all files but weights into a new directory; returns their checksums by name."""
    directory.mkdir()
    names = ["config.json", *([store.index] if store.index else [])]
    described = [SideFile(name, store.path / name) for name in names]
    return {
        file.name: copy_with_checksum(file, directory) for file in (*described, *store.beside.files)
    }


def _write_travelling(
    directory: Path,
    manifest: PatchManifest,
    store: TensorStore,
    checksums: Mapping[str, str],
    advance: Advance,
) -> None:
    if not manifest.travelling:
        return
    for name, specs in shards(file_order(manifest.travelling)).items():
        file = directory / name.replace("model", STEM, 1)
        read = reader(store.tensors, advance, f"writing {file.name}")
        for tensor, sha256 in write_file(file, specs, read, METADATA).items():
            if sha256 != checksums[tensor]:
                raise CheckpointError(
                    f"{store.path}: {tensor!r} is damaged (its checksum differs); copy the "
                    "directory again"
                )


def _tensors_by_file(store: TensorStore) -> dict[str, tuple[str, ...]]:
    """File name -> tensor names in the order of their bytes. An empty tensor is where the next
    one begins, so before it; several at one place keep the header's order, in which the store
    lists its tensors.
    """
    files: dict[str, list[FileTensor]] = {file: [] for file in store.files}
    for info in store.tensors.values():
        files[info.file.name].append(info)
    return {
        file: tuple(info.name for info in sorted(infos, key=lambda info: (info.begin, info.end)))
        for file, infos in files.items()
    }
