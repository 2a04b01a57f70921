"""Verify a packed checkpoint: checksums, and its error against the original."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.checkpoint.digest import WeightsDigest
from ders_core.checkpoint.streaming import each_matrix
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.compute.threads import one_thread, threads_for
from ders_core.decompose.distortion import Squares, compare
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.inputs import unchanged_inputs
from ders_core.later import torch
from ders_core.packed.checksums import checksums
from ders_core.packed.manifest import Encoded, PackedGroup
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint

AGREEMENT = 0.01
"""Two measurements of one error differ by no larger share."""

WORKING_BYTES_A_WEIGHT = 12
"""What comparing an expert holds at most."""


@dataclass(frozen=True)
class GroupError:
    """The error of one group: ‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖ over its experts. gain, noise: a and
    ‖E‖/‖Δ‖ of Δ̂ = aΔ + E with E ⟂ Δ."""

    layer: int
    projection: str
    rel_error_delta: float
    rel_error_weight: float
    gain: float
    noise: float


@dataclass(frozen=True)
class Verification:
    """problems: sentences. groups: empty if nothing was compared. tensors: how many there are."""

    problems: tuple[str, ...]
    groups: tuple[GroupError, ...]
    tensors: int

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "tensors": self.tensors,
            "groups": [asdict(group) for group in self.groups],
        }


@unchanged_inputs()
def verify(
    packed: str | Path, against: str | Path | None = None, *, progress: Progress = quiet
) -> Verification:
    """Check every tensor's checksum and the config; with `against`, compare every tensor with the
    original's and measure the error of every group.

    A problem is: what is damaged or was edited after packing; an original that holds other bytes
    than were packed, anywhere; an error that is not the one that was measured when the group was
    packed, and any error of a lossless group. Checkpoints of format versions 1 and 2 do not know
    the weights that their groups were encoded from: of these weights the sample of
    `Store.identity` decides.
    progress counts bytes. Raises CheckpointError if one of the two cannot be opened or is written
    meanwhile, or if they are different models.
    """
    checkpoint = PackedCheckpoint(packed)
    original = open_checkpoint(against) if against is not None else None
    groups = original.groups(bool(checkpoint.manifest.recipe.get("extended"))) if original else []
    carried = checkpoint.original.carried() if original else {}
    meter = Meter(
        checkpoint.store.bytes_total
        + sum(group.nbytes for group in groups)
        + sum(tensor.nbytes for tensor in carried.values()),
        progress,
    )
    problems = checkpoint.checksum_problems(meter.advance) + checkpoint.config_problems()
    count = len(checkpoint.store.tensors)
    if original is None:
        return Verification(tuple(problems), (), count)
    if original.identity != checkpoint.manifest.source.identity:
        problems.append(
            f"{checkpoint.path} was packed from another checkpoint than {original.path}"
        )
    problems += _carried_problems(checkpoint, original, meter)
    errors = []
    for group in groups:
        error, others = _compared(checkpoint, original, group)
        errors.append(error)
        problems += others
        meter.advance(group.nbytes, f"compared layer {group.layer}, {group.projection}")
    return Verification(tuple(problems), tuple(errors), count)


def _carried_problems(
    checkpoint: PackedCheckpoint, original: Checkpoint, meter: Meter
) -> list[str]:
    """One sentence for each tensor that is not the original's though it was to stay as it is."""
    problems = []
    promised, compared = checkpoint.manifest.checksums, []
    for name, tensor in checkpoint.original.carried().items():
        reader = original.tensors.get(name)
        if reader is None:
            problems.append(f"{original.path} has no tensor {name!r}, which was packed")
        if reader is not None and name in promised:
            compared.append(reader)
        else:
            meter.advance(tensor.nbytes, f"looked for {name}")
    for reader, found in checksums(compared):
        if found != promised[reader.name]:
            problems.append(f"{original.path} holds another {reader.name!r} than was packed")
        meter.advance(reader.nbytes, f"compared {reader.name}")
    return problems


def _compared(
    checkpoint: PackedCheckpoint, original: Checkpoint, group: ExpertGroup
) -> tuple[GroupError, list[str]]:
    """The error of one group, and what is wrong with it."""
    groups = {(entry.layer, entry.projection): entry for entry in checkpoint.manifest.groups}
    packed = groups.get(group.key)
    if packed is None:
        error = _carried_error(checkpoint, group)
        return error, []  # its tensors were compared as such
    digest = WeightsDigest()
    error = _group_error(checkpoint, packed, group, digest)
    encoded = checkpoint.manifest.encoded.get(packed.prefix)
    where = f"layer {group.layer}, {group.projection}"
    if encoded is not None and encoded.sha256 != digest.sha256:
        return error, [f"{where}: {original.path} holds other weights than were packed"]
    if checkpoint.experts.is_lossless(packed):
        if error.rel_error_weight == 0:
            return error, []
        return error, [
            f"{where}: its error is {error.rel_error_weight:.3g}, but it was packed without loss"
        ]
    if encoded is not None and not _agrees(error, encoded, Dtype[packed.dtype].torch):
        return error, [
            f"{where}: its error ‖Ŵ−W‖/‖W‖ is {error.rel_error_weight:.6g}, but it was "
            f"{encoded.rel_error_weight:.6g} when it was packed; copy {checkpoint.path} again"
        ]
    return error, []


def _agrees(error: GroupError, encoded: Encoded, dtype: torch.dtype) -> bool:
    """Whether an error is the one that was measured while encoding.

    Another device or machine may round single values of the weights to the neighbour: that is
    within `AGREEMENT`, and a small part of the dtype's own rounding.
    """
    rounding = torch.finfo(dtype).eps / 16
    near = math.isclose(
        error.rel_error_weight,
        encoded.rel_error_weight,
        rel_tol=AGREEMENT,
        abs_tol=rounding,
    )
    share = error.rel_error_weight / error.rel_error_delta if error.rel_error_delta else 1.0
    return near and math.isclose(
        error.rel_error_delta,
        encoded.rel_error_delta,
        rel_tol=AGREEMENT,
        abs_tol=rounding / share if share else 0.0,
    )


def _group_error(
    checkpoint: PackedCheckpoint, packed: PackedGroup, group: ExpertGroup, digest: WeightsDigest
) -> GroupError:
    """The error of a packed group. digest: gets the original's weights."""
    if packed.shape != group.shape:
        raise CheckpointError(
            f"layer {group.layer}, {group.projection} has shape {list(group.shape)} in the "
            f"original and {list(packed.shape)} in {checkpoint.path}; they are different models"
        )
    experts, out, width = group.shape
    threads = threads_for(experts, WORKING_BYTES_A_WEIGHT * out * width, torch.device("cpu"))

    def compared(expert: int, weight: torch.Tensor) -> Squares:
        base = checkpoint.experts.base(packed, expert)
        return compare(checkpoint.experts.weight(packed, expert), weight, base)

    squares = Squares()
    with one_thread(), torch.inference_mode():
        for _, one in each_matrix(group, compared, threads, seen=digest.add):
            squares += one
        if packed.biases:
            biases = compare(checkpoint.experts.biases(packed), group.read_biases())
            squares += Squares(error=biases.error)
            digest.add_biases(group)
    return GroupError(*group.key, *squares.relative, squares.gain, squares.noise)


def _carried_error(checkpoint: PackedCheckpoint, group: ExpertGroup) -> GroupError:
    """The error of a group that stays under its original names, which must be 0."""
    squares = Squares()
    for matrix in (*group.experts, *group.biases):
        carried = checkpoint.store.tensors.get(matrix.info.name)
        if carried is None or (carried.dtype, carried.nbytes) != (
            matrix.info.dtype,
            matrix.info.nbytes,
        ):
            raise CheckpointError(
                f"{matrix.info.name!r} is {matrix.info.dtype.name} {list(matrix.info.shape)} in "
                f"the original and not in {checkpoint.path}; they are different models"
            )
        squares += compare(matrix.within(checkpoint.store.tensors).read(), matrix.read())
    return GroupError(*group.key, *squares.relative, squares.gain, squares.noise)
