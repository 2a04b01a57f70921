"""Write a directory again from its description, and check every byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ders_core.compute.progress import Advance
from ders_core.errors import CheckpointError
from ders_core.files.address import is_file
from ders_core.files.checksum import file_checksum
from ders_core.files.links import check_within
from ders_core.files.side_files import SideFile
from ders_core.files.store import PATCH_FILE, TensorStore
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import NO_METADATA, write_file
from ders_core.packed.patch.describe import copy_with_checksum, reader, travelling_tensors
from ders_core.packed.patch.manifest import SIDE, PatchManifest, PatchTensor

Refuse = Callable[[str, PatchTensor | None], CheckpointError]
"""`refuse(name, tensor)` makes the error for a tensor, or for a file (then tensor is None), that is
missing or differs."""


def restore(
    directory: Path,
    manifest: PatchManifest,
    elsewhere: Mapping[str, FileTensor],
    out: Path,
    refuse: Refuse,
    advance: Advance,
) -> None:
    """Write the described directory to `out`, which exists.

    directory: where the manifest is. elsewhere: the tensors of the other checkpoint. advance:
    counts the bytes written. Raises what `refuse` makes of the first file or tensor that is missing
    or differs, and CheckpointError if the manifest contradicts itself.
    """
    for name, sha256 in manifest.side.items():
        file = SideFile(name, directory / SIDE / name)
        check_within(file.path, directory)
        if not is_file(file.path) or copy_with_checksum(file, out) != sha256:
            raise refuse(name, None)
    sources = _sources(directory, manifest, elsewhere, refuse)
    for target, names in manifest.files.items():
        read = reader(sources, advance, f"writing {target}")
        specs = {name: manifest.pieces[name].spec for name in names}
        checksums = write_file(
            out / target, specs, read, manifest.metadata.get(target, NO_METADATA)
        )
        for name, sha256 in checksums.items():
            if sha256 != manifest.pieces[name].sha256:
                raise refuse(name, manifest.pieces[name])
    if TensorStore.open(out).identity != manifest.identity:  # names or order were changed
        raise CheckpointError(
            f"{directory / PATCH_FILE} contradicts itself; copy the {manifest.kind} again"
        )


def damaged_side_files(directory: Path, manifest: PatchManifest) -> list[str]:
    """The names of side files that are missing or differ from their checksums."""
    files = {name: directory / SIDE / name for name in manifest.side}
    return [
        name
        for name, file in files.items()
        if not is_file(file) or file_checksum(file) != manifest.side[name]
    ]


def _sources(
    directory: Path, manifest: PatchManifest, elsewhere: Mapping[str, FileTensor], refuse: Refuse
) -> dict[str, FileTensor]:
    """Where each tensor of the described directory is read from."""
    travelling = travelling_tensors(directory, manifest)
    sources: dict[str, FileTensor] = {}
    for name, tensor in manifest.pieces.items():
        info = travelling.get(name) if tensor.name is None else elsewhere.get(tensor.name)
        if info is None or info.spec != tensor.spec:
            raise refuse(name, tensor)
        sources[name] = info
    return sources
