"""Apply a patch to its base: write the packed checkpoint that it was made from, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CheckpointError
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.missing import local_path
from ders_core.files.output import new_target, output_directory
from ders_core.files.store import TensorStore
from ders_core.packed.patch.manifest import PatchManifest, PatchTensor
from ders_core.packed.patch.restore import Refuse, restore
from ders_core.packed.patch.rollback_files import write_rollback


@dataclass(frozen=True)
class AppliedPatch:
    """bytes: of the tensors written. kept: bytes that are kept for the way back."""

    out: str
    bytes: int
    kept: int


@unchanged_inputs()
def apply_patch(
    base: str | Path, patch: str | Path, out: str | Path, *, progress: Progress = quiet
) -> AppliedPatch:
    """Write the new directory `out`; `base` and `patch` stay as they are.

    The checksum of every tensor and file is compared. `out` also keeps what a rollback needs: the
    tensors and side files that `base` holds and `out` does not, without a rollback that `base`
    itself may keep. progress counts bytes. Raises CheckpointError if `patch` is damaged or not a
    patch, if `base` is not the base that it needs, or if one of them is written meanwhile; then
    there is no `out`.
    """
    new_target(out)
    directory = local_path(patch)
    manifest = PatchManifest.read(directory, "patch")
    store = TensorStore.open(base)
    base_bytes = sum(info.nbytes for info in store.tensors.values())
    meter = Meter(manifest.nbytes + base_bytes, progress)
    taken = {tensor.name for tensor in manifest.pieces.values()}
    left = sum(info.nbytes for name, info in store.tensors.items() if name not in taken)
    with output_directory(out, needs=manifest.nbytes + left) as partial:
        refuse = _refusal(directory, manifest, store)
        restore(directory, manifest, store.tensors, partial, refuse, meter.advance)
        tensors = manifest.pieces.values()
        kept = write_rollback(
            partial,
            {name: tensor.spec for name, tensor in manifest.pieces.items()},
            {name: tensor.sha256 for name, tensor in manifest.pieces.items()},
            store,
            known={tensor.name: tensor.sha256 for tensor in tensors if tensor.name is not None},
            advance=meter.advance,
        )
    return AppliedPatch(str(Path(out).expanduser()), manifest.nbytes, kept)


def _refusal(directory: Path, manifest: PatchManifest, base: TensorStore) -> Refuse:
    """The error for what is missing or differs: in the patch itself, or in the base."""

    def refuse(name: str, tensor: PatchTensor | None) -> CheckpointError:
        if tensor is None or tensor.name is None:
            return CheckpointError(
                f"{directory}: {name!r} is missing or damaged; copy the patch again"
            )
        if manifest.base is not None:
            called = f" ({manifest.base_name!r})" if manifest.base_name else ""
            advice = f"give the base with the identity {manifest.base[:16]}{called}"
        else:
            advice = (
                "apply it to a packed checkpoint with the same bases; for another base, export it "
                "with --base"
            )
        return CheckpointError(
            f"{base.path} is not the base of this patch: it lacks {tensor.name!r} "
            f"{tensor.dtype} {list(tensor.shape)} as the patch needs it; {advice}"
        )

    return refuse
