"""Apply a patch to its base: the packed checkpoint that it was made from, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CheckpointError
from ders_core.files.output import output_directory
from ders_core.files.spec import NAMES, TensorSpec
from ders_core.files.store import TensorStore
from ders_core.packed.patch.manifest import ROLLBACK, Key, Picture, Piece, checksums, develop, paint


@dataclass(frozen=True)
class Applied:
    """bytes: of the tensors written. kept: bytes that are kept for the way back."""

    out: str
    bytes: int
    kept: int


def apply_patch(
    base: str | Path, patch: str | Path, out: str | Path, *, progress: Progress = quiet
) -> Applied:
    """Write the new directory `out`; `base` and `patch` stay as they are.

    The checksum of every tensor and file is compared. `out` also keeps what the way back needs,
    which is what `base` held and `out` does not (but not the way back that `base` itself may keep).
    progress counts bytes. Raises CheckpointError if `patch` is no patch or damaged, or if `base` is
    not the base it needs; then nothing stands at `out`.
    """
    directory = Path(patch).expanduser()
    picture = Picture.read(directory, "patch")
    store = TensorStore.open(base)
    meter = Meter(picture.nbytes + sum(info.nbytes for info in store.tensors.values()), progress)

    def refuse(name: str, piece: Piece | None) -> CheckpointError:
        if piece is None or piece.name is None:
            return CheckpointError(
                f"{directory}: {name!r} is missing or damaged; copy the patch again"
            )
        if picture.base is not None:
            called = f" ({picture.base_name!r})" if picture.base_name else ""
            wanted = f"give the base with the identity {picture.base[:16]}{called}"
        else:
            wanted = (
                "it goes on a packed checkpoint with the same bases; for another base, export it "
                "with --base"
            )
        return CheckpointError(
            f"{store.path} is not the base of this patch: it lacks {piece.name!r} "
            f"{piece.dtype} {list(piece.shape)} as the patch needs it; {wanted}"
        )

    taken = {piece.name for piece in picture.pieces.values()}
    left = sum(info.nbytes for name, info in store.tensors.items() if name not in taken)
    with output_directory(out, needs=picture.nbytes + left) as partial:
        develop(directory, picture, store.tensors, partial, refuse, meter.advance)
        specs = {name: piece.spec for name, piece in picture.pieces.items()}
        sums = {name: piece.sha256 for name, piece in picture.pieces.items()}
        known = {own.name: own.sha256 for own in picture.pieces.values() if own.name is not None}
        kept = keep_the_way_back(partial, specs, sums, store, known=known, step=meter.advance)
    return Applied(str(Path(out).expanduser()), picture.nbytes, kept)


def keep_the_way_back(
    partial: Path,
    specs: Mapping[str, TensorSpec],
    sums: Mapping[str, str],
    store: TensorStore,
    *,
    known: Mapping[str, str] | None = None,
    step: Callable[[int, str], None] = lambda count, message: None,
) -> int:
    """Write into a new checkpoint what `store`, its base, held and it does not; returns its bytes.

    specs, sums: of the new checkpoint's tensors. known: checksums of the base's tensors, as far as
    they need not be computed. `step(bytes, message)` is called as bytes are read.
    """
    own = checksums(store.tensors, known or {}, step)
    held: dict[Key, str] = {}
    for name, spec in specs.items():
        held.setdefault((NAMES[spec.dtype], spec.shape, sums[name]), name)
    directory = partial / ROLLBACK
    directory.mkdir()
    back = paint(
        directory, store, own, lambda name, key: held.get(key), step, kind="rollback", base=None
    )
    return sum(spec.nbytes for spec in back.travelling.values())
