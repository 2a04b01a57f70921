"""Entries drawn at random, again from the seed when they are decoded: places take no bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ders_core.codecs.codec import EncodeContext
from ders_core.codecs.coding.prng import position_chunks
from ders_core.codecs.delta_entries import Entries
from ders_core.codecs.selection.selection import Chosen, Selection, kept_of_all
from ders_core.files.spec import TensorSpec
from ders_core.later import torch


@dataclass(frozen=True)
class RandomSelection(Selection):
    """DeRS eq. 4 and DARE (arXiv 2311.03099): exactly round(p·n) entries are dropped, drawn without
    replacement."""

    drop_rate: float

    def count(self, shape: tuple[int, int]) -> int:
        return kept_of_all(self.drop_rate, shape)

    def specs(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        return {}

    def select(self, entries: Entries, context: EncodeContext) -> Chosen:
        return Chosen(self.places({}, entries.shape, context.seed, entries.device), {})

    def places(
        self,
        parts: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        seed: int,
        device: torch.device,
    ) -> Iterator[torch.Tensor]:
        return position_chunks(math.prod(shape), self.count(shape), seed, device)

    def decoding_gain(self, shape: tuple[int, int]) -> float:
        """1 / (1 − p), for the exact share of entries that stay."""
        count = self.count(shape)
        return math.prod(shape) / count if count else 0.0
