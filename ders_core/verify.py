"""Verify a packed checkpoint: checksums, and its error against the original."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.errors import CheckpointError
from ders_core.measure import relative_errors, squared
from ders_core.packed import PackedCheckpoint, checksum_problems
from ders_core.progress import Progress, quiet


@dataclass(frozen=True)
class GroupError:
    """The error of one group: ‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖ over its experts."""

    layer: int
    projection: str
    rel_error_delta: float
    rel_error_weight: float


@dataclass(frozen=True)
class Verification:
    """What was found; `problems` are sentences."""

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

    progress counts bytes. Raises CheckpointError if either cannot be opened at all.
    """
    checkpoint = PackedCheckpoint(packed)
    original = Checkpoint(against) if against is not None else None
    total = checkpoint.store.bytes_total + (original.bytes_experts if original else 0)
    done = 0

    def step(count: int, message: str) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total, message)

    problems = checksum_problems(checkpoint, step)
    if original is None:
        return Verification(tuple(problems), (), len(checkpoint.store.tensors))
    if original.identity != checkpoint.manifest.source.identity:
        problems.append(f"{checkpoint.path} was packed from another checkpoint than {against}")
    groups = []
    for group in original.groups():
        groups.append(_group_error(checkpoint, group))
        step(group.nbytes, f"compared layer {group.layer}, {group.projection}")
    return Verification(tuple(problems), tuple(groups), len(checkpoint.store.tensors))


def _group_error(checkpoint: PackedCheckpoint, group: ExpertGroup) -> GroupError:
    packed = next(
        (g for g in checkpoint.manifest.groups if (g.layer, g.projection) == group.key), None
    )
    base = checkpoint.base(packed).float() if packed else None
    error = delta_energy = weight_energy = 0.0
    with torch.inference_mode():
        for expert, name in enumerate(group.sources):
            weight = group.read(expert).float()
            if checkpoint.spec(name).shape != group.shape[1:]:
                raise CheckpointError(
                    f"{name!r} has shape {list(group.shape[1:])} in the original and "
                    f"{list(checkpoint.spec(name).shape)} in {checkpoint.path}; "
                    "they are different models"
                )
            error += squared(checkpoint.read(name).float() - weight)
            delta_energy += squared(weight - base) if base is not None else 0.0
            weight_energy += squared(weight)
    delta, relative = relative_errors(error, delta_energy, weight_energy)
    return GroupError(*group.key, delta, relative)
