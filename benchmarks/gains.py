"""What a packed checkpoint's deltas are, measured on the weights: bytes, gain and noise.

A decoded delta is Δ̂ = a·Δ + E with E at right angles to Δ: a is its gain, ‖E‖/‖Δ‖ its noise. Both
are of all experts together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ders_core import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint

PLAIN_PARTS = ("base", "bias")


@dataclass(frozen=True)
class Deltas:
    """file_bytes: of all weight files. delta_bytes: of the deltas' codes, with their tables.
    entries: of all deltas."""

    file_bytes: int
    delta_bytes: int
    entries: int
    gain: float
    noise: float

    @property
    def bits(self) -> float:
        """An entry."""
        return 8 * self.delta_bytes / self.entries


def measure_deltas(original: Path, packed: Path) -> Deltas:
    """Decode every expert of `packed`, and compare it with the original's."""
    reader = PackedCheckpoint(packed)
    before, after = open_checkpoint(original), open_checkpoint(packed)
    delta_bytes = entries = 0
    energy = product = decoded_energy = 0.0
    for group in reader.manifest.groups:
        parts = {
            name.removeprefix(f"{group.prefix}."): tensor
            for name, tensor in reader.store.tensors.items()
            if name.startswith(f"{group.prefix}.")
        }
        delta_bytes += sum(
            tensor.nbytes for part, tensor in parts.items() if part not in PLAIN_PARTS
        )
        entries += math.prod(group.shape)
        base = parts["base"].read().float()
        weights = before.group(group.layer, group.projection)
        synthesized = after.group(group.layer, group.projection)
        for expert in range(group.shape[0]):
            delta = (weights.read(expert).float() - base).double()
            decoded = (synthesized.read(expert).float() - base).double()
            energy += float(delta.square().sum())
            product += float((delta * decoded).sum())
            decoded_energy += float(decoded.square().sum())
    gain = product / energy
    noise = math.sqrt(max(decoded_energy / energy - gain**2, 0.0))
    return Deltas(reader.bytes_total, delta_bytes, entries, gain, noise)
