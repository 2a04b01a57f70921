"""Verify a packed checkpoint: checksums, and its error against the original."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ders_core.checkpoint import ExpertGroup
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.decompose.distortion import Squares, compare
from ders_core.errors import CheckpointError
from ders_core.files.spec import NAMES
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint


@dataclass(frozen=True)
class GroupError:
    """The error of one group: ‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖ over its experts."""

    layer: int
    projection: str
    rel_error_delta: float
    rel_error_weight: float


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


def verify(
    packed: str | Path, against: str | Path | None = None, *, progress: Progress = quiet
) -> Verification:
    """Check every tensor's checksum; with `against`, measure every group against the original.

    progress counts bytes. Raises CheckpointError if one of the two cannot be opened, or if they are
    different models.
    """
    checkpoint = PackedCheckpoint(packed)
    original = open_checkpoint(against) if against is not None else None
    experts = original.bytes_experts if original else 0
    meter = Meter(checkpoint.store.bytes_total + experts, progress)
    problems = checkpoint.checksum_problems(meter.advance)
    if original is None:
        return Verification(tuple(problems), (), len(checkpoint.store.tensors))
    if original.identity != checkpoint.manifest.source.identity:
        problems.append(
            f"{checkpoint.path} was packed from another checkpoint than {original.path}"
        )
    groups = []
    for group in original.groups(bool(checkpoint.manifest.recipe.get("extended"))):
        groups.append(_group_error(checkpoint, group))
        meter.advance(group.nbytes, f"compared layer {group.layer}, {group.projection}")
    return Verification(tuple(problems), tuple(groups), len(checkpoint.store.tensors))


def _group_error(checkpoint: PackedCheckpoint, group: ExpertGroup) -> GroupError:
    groups = {(entry.layer, entry.projection): entry for entry in checkpoint.manifest.groups}
    packed = groups.get(group.key)
    if packed is None:
        return _carried_error(checkpoint, group)
    if packed.shape != group.shape:
        raise CheckpointError(
            f"layer {group.layer}, {group.projection} has shape {list(group.shape)} in the "
            f"original and {list(packed.shape)} in {checkpoint.path}; they are different models"
        )
    squares = Squares()
    with torch.inference_mode():
        for expert in range(group.shape[0]):
            base = checkpoint.experts.base(packed, expert)
            squares += compare(checkpoint.experts.weight(packed, expert), group.read(expert), base)
        if packed.biases:
            biases = compare(checkpoint.experts.biases(packed), group.read_biases())
            squares += Squares(error=biases.error)
    return GroupError(*group.key, *squares.relative)


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
                f"{matrix.info.name!r} is {NAMES[matrix.info.dtype]} {list(matrix.info.shape)} in "
                f"the original and not in {checkpoint.path}; they are different models"
            )
        squares += compare(matrix.within(checkpoint.store.tensors).read(), matrix.read())
    return GroupError(*group.key, *squares.relative)
