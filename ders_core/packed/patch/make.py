"""Make a patch: the part of a packed checkpoint that its base does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CheckpointError
from ders_core.files import output
from ders_core.files.checksum import checksum
from ders_core.files.side_files import local_bytes
from ders_core.files.store import TensorStore
from ders_core.packed.patch.describe import (
    Content,
    content,
    describe,
    tensor_checksums,
    travelling_tensors,
)
from ders_core.packed.patch.manifest import PatchManifest
from ders_core.packed.patch.restore import damaged_side_files
from ders_core.packed.reader import PackedCheckpoint


@dataclass(frozen=True)
class PatchSizes:
    """bytes: of the tensors that travel. needed: bytes of the tensors that the base must hold.

    base: name and identity of that base; None if any checkpoint with the same bases will do.
    """

    bytes: int
    needed: int
    base: tuple[str, str] | None


def make_patch(
    packed: PackedCheckpoint,
    out: Path,
    base: str | Path | None = None,
    *,
    progress: Progress = quiet,
) -> PatchSizes:
    """Write the patch's files into the directory `out`, which exists.

    base: the directory that the patch will be applied to, the dense parent or another packed
    checkpoint: tensors that it holds byte for byte, under any name, need not travel. Without it,
    the patch is for any packed checkpoint with the same bases and other tensors, and the deltas
    alone travel. progress counts bytes read. Raises CheckpointError if `base` is not a checkpoint,
    or if `packed` is damaged; OutputError if the disk lacks the room, before anything is written.
    """
    checksums = packed.manifest.checksums
    missing = packed.store.tensors.keys() - checksums.keys()
    if missing:
        raise CheckpointError(
            f"{packed.path}: the manifest has no checksum of {min(missing)!r}; copy the directory "
            "again"
        )
    store = TensorStore.open(base) if base is not None else None
    reading = sum(info.nbytes for info in store.tensors.values()) if store else 0
    total = reading + sum(info.nbytes for info in packed.store.tensors.values())
    meter = Meter(total, progress)
    names_in_base: dict[Content, str] = {}
    if store is not None:
        for name, sha256 in tensor_checksums(store.tensors, {}, meter.advance).items():
            names_in_base.setdefault(content(store.tensors[name], sha256), name)
    deltas = delta_tensors(packed)

    def elsewhere(name: str, wanted: Content) -> str | None:
        if store is not None:
            return names_in_base.get(wanted)
        return None if name in deltas else name

    travelling = sum(
        info.nbytes
        for name, info in packed.store.tensors.items()
        if elsewhere(name, content(info, checksums[name])) is None
    )
    output.check_room(out.parent, travelling + local_bytes(packed.beside.files))
    manifest = describe(
        out, packed.store, checksums, elsewhere, meter.advance, kind="patch", base=store
    )
    travels = sum(spec.nbytes for spec in manifest.travelling.values())
    named = (store.path.name, store.identity) if store is not None else None
    return PatchSizes(travels, manifest.nbytes - travels, named)


def least_bytes(packed: PackedCheckpoint, base: str | Path | None) -> int:
    """Bytes of tensors that a patch against `base` holds at least, known from headers alone: the
    base may hold any tensor of a dtype and shape that it has. Without a base, exactly.

    Raises CheckpointError if `base` is not a checkpoint.
    """
    tensors = packed.store.tensors
    if base is None:
        return sum(tensors[name].nbytes for name in delta_tensors(packed))
    forms = {info.spec.stored for info in TensorStore.open(base).tensors.values()}
    return sum(info.nbytes for info in tensors.values() if info.spec.stored not in forms)


def delta_tensors(packed: PackedCheckpoint) -> set[str]:
    """The names of the tensors that hold deltas: every part of a group but its base."""
    prefixes = tuple(f"{group.prefix}." for group in packed.manifest.groups)
    bases = {f"{prefix}base" for prefix in prefixes}
    parts_of_bases = tuple(f"{base}." for base in bases)
    return {
        name
        for name in packed.store.tensors
        if name.startswith(prefixes) and name not in bases and not name.startswith(parts_of_bases)
    }


def patch_problems(patch: Path) -> list[str]:
    """Read a patch's files again; each sentence names a file or tensor that is damaged."""
    manifest = PatchManifest.read(patch, "patch")
    tensors = travelling_tensors(patch, manifest)
    problems = [f"{name!r} is missing" for name in manifest.travelling if name not in tensors]
    problems += [
        f"{name!r} differs"
        for name, info in tensors.items()
        if name not in manifest.pieces or checksum(info) != manifest.pieces[name].sha256
    ]
    return problems + [f"{name!r} differs" for name in damaged_side_files(patch, manifest)]
