"""Make a patch: what of a packed checkpoint its base does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CheckpointError
from ders_core.files.checksum import checksum
from ders_core.files.store import TensorStore
from ders_core.packed.patch.manifest import (
    Key,
    Picture,
    checksums,
    content,
    damaged_side_files,
    paint,
    travelling,
)
from ders_core.packed.reader import PackedCheckpoint


@dataclass(frozen=True)
class Made:
    """bytes: of the tensors that travel. needed: bytes of those that the base must hold.

    base: the name and the identity of that base, where it was a certain one.
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
) -> Made:
    """Write the patch's files into the directory `out`.

    base: the directory that the patch will be applied to, the dense parent or another packed
    checkpoint: whatever it holds byte for byte, under any name, need not travel. Without one, the
    patch is for any packed checkpoint with the same bases and other tensors, and the deltas alone
    travel. progress counts bytes read. Raises CheckpointError if `base` is no checkpoint, or if
    `packed` is damaged.
    """
    sums = packed.manifest.checksums
    missing = packed.store.tensors.keys() - sums.keys()
    if missing:
        raise CheckpointError(
            f"{packed.path}: the manifest has no checksum of {min(missing)!r}; copy the directory "
            "again"
        )
    store = TensorStore.open(base) if base is not None else None
    reading = sum(info.nbytes for info in store.tensors.values()) if store else 0
    total = reading + sum(info.nbytes for info in packed.store.tensors.values())
    meter = Meter(total, progress)
    held: dict[Key, str] = {}
    if store is not None:
        for name, sha in checksums(store.tensors, {}, meter.advance).items():
            held.setdefault(content(store.tensors[name], sha), name)
    deltas = delta_tensors(packed)

    def elsewhere(name: str, key: Key) -> str | None:
        if store is not None:
            return held.get(key)
        return None if name in deltas else name

    picture = paint(out, packed.store, sums, elsewhere, meter.advance, kind="patch", base=store)
    travels = sum(spec.nbytes for spec in picture.travelling.values())
    told = (store.path.name, store.identity) if store is not None else None
    return Made(travels, picture.nbytes - travels, told)


def delta_tensors(packed: PackedCheckpoint) -> set[str]:
    """The tensors of a packed checkpoint that stand for deltas: all parts of groups but bases."""
    prefixes = tuple(f"{group.prefix}." for group in packed.manifest.groups)
    return {
        name
        for name in packed.store.tensors
        if name.startswith(prefixes) and not name.endswith(".base")
    }


def read_back(patch: Path) -> list[str]:
    """What is wrong with a patch's own files, as sentences."""
    picture = Picture.read(patch, "patch")
    beside = travelling(patch, picture)
    problems = [f"{name!r} is missing" for name in picture.travelling if name not in beside]
    problems += [
        f"{name!r} differs"
        for name, info in beside.items()
        if name not in picture.pieces or checksum(info) != picture.pieces[name].sha256
    ]
    return problems + [f"{name!r} differs" for name in damaged_side_files(patch, picture)]
