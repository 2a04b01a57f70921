"""A group whose tensors are written to their places as its experts are encoded.

So only a few experts' parts are in memory, and the disk is busy while threads compute.
"""

from __future__ import annotations

from collections.abc import Mapping

from ders_core.codecs.group import Stacked
from ders_core.files.dtype import Dtype
from ders_core.files.in_place import Growing
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import tensor_bytes
from ders_core.later import torch


class PlacedGroup:
    """prefix: of the group's names. places: full name of each of its tensors -> where it goes."""

    def __init__(self, prefix: str, places: Mapping[str, FileTensor]) -> None:
        self._prefix = prefix
        self._growing = {name: Growing(place) for name, place in places.items()}

    def append(self, part: str, piece: torch.Tensor) -> None:
        """Write a part that is whole, or the next expert's: `[…]` of `[experts, …]`, on the CPU."""
        growing = self._growing[f"{self._prefix}.{part}"]
        spec, shape = growing.place.spec, tuple(piece.shape)
        if Dtype.of(piece.dtype) != spec.dtype or shape not in (spec.shape, spec.shape[1:]):
            raise AssertionError(f"{growing.place.name}: {piece.dtype} {shape}, planned: {spec}")
        growing.append(tensor_bytes(piece))

    def append_all(self, tensors: Mapping[str, Stacked]) -> None:
        """Write parts that are whole, on the CPU, by their names."""
        for part, tensor in tensors.items():
            for piece in tensor.pieces:
                self.append(part, piece)

    def checksums(self) -> dict[str, str]:
        """Hex SHA-256 of each tensor by its full name; all must be complete."""
        return {name: growing.finish() for name, growing in self._growing.items()}

    @property
    def nbytes(self) -> int:
        """Of all tensors together."""
        return sum(growing.place.nbytes for growing in self._growing.values())
