"""Entries with the highest scores, of the matrix or of each row; their places are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ders_core.codecs.codec import EncodeContext, Parts
from ders_core.codecs.coding.positions import PositionForm
from ders_core.codecs.coding.prng import random_uniform
from ders_core.codecs.delta_entries import Entries
from ders_core.codecs.fitting.select import largest, largest_of_rows, largest_read
from ders_core.codecs.selection.placing import Places, PlacesInPieces
from ders_core.codecs.selection.selection import (
    Chosen,
    Selection,
    kept_of_all,
    weighed_magnitudes,
)
from ders_core.compute.pieces import chunk_values
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch


@dataclass(frozen=True)
class RankedSelection(Selection):
    """by_row: every row keeps as many; otherwise the matrix as a whole does. form: how places are
    stored, in ascending order."""

    drop_rate: float
    by_row: bool
    form: PositionForm

    @property
    def ragged(self) -> frozenset[str]:
        return frozenset() if self.form.is_exact else frozenset({"positions"})

    def count(self, shape: tuple[int, int]) -> int:
        if not self.by_row:
            return kept_of_all(self.drop_rate, shape)
        out, width = shape
        return out * (width - round(self.drop_rate * width))

    def specs(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        length = self.form.most_bytes(math.prod(shape), self.count(shape))
        return {"positions": TensorSpec(Dtype.U8, (length,))}

    def places(
        self,
        parts: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        seed: int,
        device: torch.device,
    ) -> Places:
        stored = self.form.decode(parts["positions"], math.prod(shape), self.count(shape))
        return PlacesInPieces(stored.split(chunk_values(device)))

    def _best(self, scores: torch.Tensor) -> torch.Tensor:
        """Places of the highest scores `[out, in]`; among equals the first ones."""
        shape = (scores.shape[0], scores.shape[1])
        if self.by_row:
            return largest_of_rows(scores, self.count(shape) // max(shape[0], 1))
        return largest(scores, self.count(shape))

    def _chosen(
        self, places: torch.Tensor, size: int, chances: torch.Tensor | None = None
    ) -> Chosen:
        parts: Parts = {"positions": self.form.encode(places, size)}
        pieces = PlacesInPieces(places.split(chunk_values(places.device)))
        return Chosen(pieces, parts, chances)


class MagnitudeSelection(RankedSelection):
    """The largest |Δ|, with a calibration the largest |Δ_ij|·√E[x_j²]."""

    def select(self, entries: Entries, context: EncodeContext) -> Chosen:
        if self.by_row or context.importance is not None:
            places = self._best(weighed_magnitudes(entries.matrix, context))
        else:  # the entries are the scores: no matrix is needed
            count = self.count(entries.shape)
            places = largest_read(entries.read, entries.size, count, entries.device)
        return self._chosen(places, entries.size)


@dataclass(frozen=True)
class DellaSelection(RankedSelection):
    """Drawn with a chance that falls with the rank of |Δ| within its row, from p + ε/2 to p − ε/2
    (DELLA, arXiv 2406.11617, eq. 2), where ε is `spread` times the most that p allows. Pareto
    sampling (Rosén 1997) keeps an exact number."""

    spread: float

    def select(self, entries: Entries, context: EncodeContext) -> Chosen:
        chances = self._chances(entries.matrix)
        luck = random_uniform(entries.size, context.seed, entries.device).view(entries.shape)
        chance = chances.clamp(1e-6, 1 - 1e-6)
        places = self._best(chance / (1 - chance) * ((1 - luck) / luck))
        return self._chosen(places, entries.size, chances)

    def _chances(self, delta: torch.Tensor) -> torch.Tensor:
        """The chance of each entry to be kept, `[out, in]`; their mean in a row is 1 − p."""
        out, width = delta.shape
        keep = 1 - self.drop_rate
        half = self.spread * min(self.drop_rate, keep)
        order = delta.abs().sort(dim=1, descending=True, stable=True).indices
        falling = torch.linspace(keep + half, keep - half, width, device=delta.device)
        if width == 1:
            falling = falling.new_tensor([keep])
        return torch.empty_like(delta).scatter_(1, order, falling.expand(out, width))
