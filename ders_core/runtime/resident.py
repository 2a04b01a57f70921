"""How many bytes a packed model's weights take in memory, told from headers, and from how streams
begin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.files.dtype import Dtype
from ders_core.packed.original import OriginalStore
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup
from ders_core.runtime.modes import CACHE_BYTES, MODES, Mode

Groups = Mapping[int, Mapping[str, ExpertGroup]]
"""Layer -> projection -> group, as of the original."""


@dataclass(frozen=True)
class ModeBytes:
    """What a packed model's weights take in memory when it is loaded in one mode.

    experts: those of the layers that have packed ones. weights: all, experts among them. cache: at
    most so much more, for whole weights of the experts that were used last.
    """

    mode: Mode
    experts: int
    weights: int
    cache: int


def bytes_by_mode(checkpoint: Checkpoint) -> list[ModeBytes] | None:
    """For each of `MODES`, in the checkpoint's dtypes; None if the checkpoint is not packed. The
    cache is that of the default `cache_bytes`. Layers that a class leaves on disk count too, since
    no header tells which they are."""
    if not isinstance(checkpoint.store, OriginalStore):
        return None
    packed = checkpoint.store.packed
    tensors = packed.model_tensors()
    sizes = {name: tensors.spec(name).nbytes for name in tensors.names()}
    layers = held_layers(packed, checkpoint)
    taken = {
        matrix.info.name
        for groups in layers.values()
        for group in groups.values()
        for matrix in group.experts
    }
    rest = sum(size for name, size in sizes.items() if name not in taken)
    coded = {(group.layer, group.projection): group for group in packed.manifest.groups}
    held = 0
    for groups in layers.values():
        for group in groups.values():
            whole = math.prod(group.shape) * group.dtype.itemsize
            held += _held(packed, coded[group.key]) if group.key in coded else whole
    whole_experts = sum(sizes.values()) - rest
    experts: dict[Mode, int] = {"synthesized": whole_experts, "cached": held, "packed": held}
    cached = min(whole_experts, CACHE_BYTES)
    return [
        ModeBytes(mode, experts[mode], rest + experts[mode], cached if mode == "cached" else 0)
        for mode in MODES
    ]


def resident_bytes(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Of all weights, synthesized and with packed experts, as of `bytes_by_mode`."""
    modes = bytes_by_mode(checkpoint)
    if modes is None:
        return None
    weights = {each.mode: each.weights for each in modes}
    return weights["synthesized"], weights["packed"]


def held_layers(packed: PackedCheckpoint, checkpoint: Checkpoint) -> Groups:
    """Every layer of a block of which something is coded: where experts of a block are of unlike
    shapes, a model loads them together."""
    coded = {group.layer for group in packed.manifest.groups}
    groups = checkpoint.groups()
    blocks = {group.block.name for group in groups if group.layer in coded}
    layers: dict[int, dict[str, ExpertGroup]] = {}
    for group in groups:
        if group.block.name in blocks:
            layers.setdefault(group.layer, {})[group.projection] = group
    return layers


def _held(packed: PackedCheckpoint, group: PackedGroup) -> int:
    """What the codecs wrote, in the form in which it is held, and the bases, decoded."""
    _, out, width = group.shape
    bases = group.base_count * out * width * Dtype[group.dtype].itemsize
    return packed.matrices.held_bytes(group) + bases
