"""Bring the base back from a patched checkpoint alone; and store what that needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ders_core.compute.progress import Advance, Meter, Progress, quiet, uncounted
from ders_core.errors import CheckpointError
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.output import new_target, output_directory
from ders_core.files.spec import TensorSpec
from ders_core.files.store import TensorStore
from ders_core.packed.manifest import ROLLBACK
from ders_core.packed.patch.describe import Content, describe, tensor_checksums
from ders_core.packed.patch.manifest import PatchManifest, PatchTensor
from ders_core.packed.patch.restore import restore


@unchanged_inputs()
def rollback(applied: str | Path, out: str | Path, *, progress: Progress = quiet) -> int:
    """Write the base of `applied` to the new directory `out`; returns the bytes of its tensors.

    It has the same files, tensors, order, config and side files as the base had; every checksum is
    compared. progress counts bytes. Raises CheckpointError if `applied` was not patched, is
    damaged, or is written meanwhile; then there is no `out`.
    """
    new_target(out)
    store = TensorStore.open(applied)
    directory = store.path / ROLLBACK
    manifest = PatchManifest.read(directory, "rollback")
    meter = Meter(manifest.nbytes, progress)

    def refuse(name: str, tensor: PatchTensor | None) -> CheckpointError:
        return CheckpointError(
            f"{store.path} cannot be rolled back: the data for {name!r} of the base is missing "
            "or damaged; apply the patch to the base again, or copy the directory again"
        )

    with output_directory(out, needs=manifest.nbytes) as partial:
        restore(directory, manifest, store.tensors, partial, refuse, meter.advance)
    return manifest.nbytes


def write_rollback(
    partial: Path,
    specs: Mapping[str, TensorSpec],
    checksums: Mapping[str, str],
    base: TensorStore,
    *,
    known: Mapping[str, str] | None = None,
    advance: Advance = uncounted,
) -> int:
    """Write into a new checkpoint at `partial` what its base holds and it does not; returns bytes.

    specs, checksums: of the new checkpoint's tensors. known: checksums of the base's tensors that
    need not be computed again. advance: counts the bytes read.
    """
    names: dict[Content, str] = {}
    for name, spec in specs.items():
        names.setdefault((*spec.stored, checksums[name]), name)
    base_checksums = tensor_checksums(base.tensors, known or {}, advance)
    directory = partial / ROLLBACK
    directory.mkdir()
    manifest = describe(
        directory,
        base,
        base_checksums,
        lambda _, wanted: names.get(wanted),
        advance,
        kind="rollback",
        base=None,
    )
    return sum(spec.nbytes for spec in manifest.travelling.values())
