"""N:M patterns: of each M neighbours in a row the N largest stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ders_core.codecs.codec import EncodeContext
from ders_core.codecs.coding.patterns import (
    check_patterns,
    choose_pattern,
    decode_pattern,
    encode_pattern,
    pattern_bytes,
)
from ders_core.codecs.delta_entries import Entries
from ders_core.codecs.selection.placing import Places, PlacesInPieces
from ders_core.codecs.selection.selection import Chosen, Selection, weighed_magnitudes
from ders_core.compute.pieces import chunk_values
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch


@dataclass(frozen=True)
class PatternSelection(Selection):
    """kept: N. neighbours: M. The last block of a row may reach beyond it: values there are 0."""

    kept: int
    neighbours: int

    def _blocks(self, shape: tuple[int, int]) -> int:
        return shape[0] * math.ceil(shape[1] / self.neighbours)

    def count(self, shape: tuple[int, int]) -> int:
        return self._blocks(shape) * self.kept

    def specs(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        length = pattern_bytes(self._blocks(shape), self.kept, self.neighbours)
        return {"positions": TensorSpec(Dtype.U8, (length,))}

    def select(self, entries: Entries, context: EncodeContext) -> Chosen:
        scores = weighed_magnitudes(entries.matrix, context)
        beyond = -entries.shape[1] % self.neighbours
        padded = torch.nn.functional.pad(scores, (0, beyond), value=-1.0)
        chosen = choose_pattern(padded.view(-1, self.neighbours), self.kept)
        parts = {"positions": encode_pattern(chosen, self.neighbours)}
        return Chosen(self._flat(chosen, entries.shape), parts)

    def check(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> None:
        check_patterns(parts["positions"], self._blocks(shape), self.kept, self.neighbours)

    def places(
        self,
        parts: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        seed: int,
        device: torch.device,
    ) -> Places:
        blocks = self._blocks(shape)
        chosen = decode_pattern(parts["positions"], blocks, self.kept, self.neighbours)
        return self._flat(chosen, shape)

    def _flat(self, chosen: torch.Tensor, shape: tuple[int, int]) -> Places:
        """Places within blocks `[blocks, N]` as places in the matrix; −1 beyond a row's end."""
        width = shape[1]
        blocks = max(math.ceil(width / self.neighbours), 1)  # in a row
        number = torch.arange(len(chosen), device=chosen.device).unsqueeze(1)
        column = (number % blocks) * self.neighbours + chosen
        places = (number // blocks) * width + column
        inside = torch.where(column < width, places, -1).view(-1)
        split = inside.split(chunk_values(chosen.device))
        return PlacesInPieces(split, has_gaps=width % self.neighbours > 0)
