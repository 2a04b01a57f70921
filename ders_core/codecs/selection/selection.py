"""What a way of selecting entries is: how many stay, which ones, and what stores their places."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from ders_core.codecs.codec import EncodeContext, Parts
from ders_core.codecs.delta_entries import Entries
from ders_core.codecs.selection.placing import Places
from ders_core.compute.sent import sent
from ders_core.files.spec import TensorSpec
from ders_core.later import torch


@dataclass(frozen=True)
class Chosen:
    """parts: what stores the places. chances: of every entry to be kept, `[out, in]` float32, where
    these differ from entry to entry."""

    places: Places
    parts: Parts
    chances: torch.Tensor | None = None


class Selection(ABC):
    """Pure: the same entries, context and parameters give the same choice on every device."""

    @property
    def ragged(self) -> frozenset[str]:
        """Parts whose length depends on the choice."""
        return frozenset()

    @abstractmethod
    def count(self, shape: tuple[int, int]) -> int:
        """How many values are stored for a matrix `[out, in]`."""

    @abstractmethod
    def specs(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """The parts that store places; at most so long where they are ragged."""

    @abstractmethod
    def select(self, entries: Entries, context: EncodeContext) -> Chosen:
        """Choose the entries that stay."""

    @abstractmethod
    def places(
        self,
        parts: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        seed: int,
        device: torch.device,
    ) -> Places:
        """The places of `Chosen`, from the parts and the seed. Raises CodecError for parts that are
        damaged."""

    def check(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> None:
        """As `Codec.check`."""
        return

    def decoding_gain(self, shape: tuple[int, int]) -> float:
        """The factor at decoding that makes values unbiased; 1 where they are stored so."""
        return 1.0


def kept_of_all(drop_rate: float, shape: tuple[int, int]) -> int:
    """How many entries stay of a matrix."""
    size = math.prod(shape)
    return size - round(drop_rate * size)


def weighed_magnitudes(delta: torch.Tensor, context: EncodeContext) -> torch.Tensor:
    """|Δ_ij|, with a calibration |Δ_ij|·√E[x_j²] (Wanda, arXiv 2306.11695), with its gradients
    |Δ_ij|·√C_ij: float32 `[out, in]`."""
    scores, importance = delta.abs(), context.importance
    if importance is not None:
        scores *= _roots(importance, delta.device)
    if context.curvature is not None and context.curvature.total > 0:
        scores *= _roots(context.curvature.rows, delta.device).unsqueeze(1)
    return scores


def _roots(weights: torch.Tensor, device: torch.device) -> torch.Tensor:
    return sent(weights, device).clamp_min(0).sqrt()
