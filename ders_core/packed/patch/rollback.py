"""Roll back: from a patched checkpoint alone, the base that it was made on."""

from __future__ import annotations

from pathlib import Path

from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CheckpointError
from ders_core.files.output import output_directory
from ders_core.files.store import TensorStore
from ders_core.packed.patch.manifest import ROLLBACK, Picture, Piece, develop


def rollback(applied: str | Path, out: str | Path, *, progress: Progress = quiet) -> int:
    """Write the base of `applied` to the new directory `out`; returns the bytes of its tensors.

    Same files, tensors, order, config and side files as it had; every checksum is compared.
    progress counts bytes. Raises CheckpointError if `applied` was not patched or is damaged; then
    nothing stands at `out`.
    """
    store = TensorStore.open(applied)
    directory = store.path / ROLLBACK
    picture = Picture.read(directory, "rollback")
    meter = Meter(picture.nbytes, progress)

    def refuse(name: str, piece: Piece | None) -> CheckpointError:
        return CheckpointError(
            f"{store.path} cannot be rolled back: what {name!r} of the base is made of is missing "
            "or damaged; apply the patch to the base again, or copy the directory again"
        )

    with output_directory(out, needs=picture.nbytes) as partial:
        develop(directory, picture, store.tensors, partial, refuse, meter.advance)
    return picture.nbytes
