"""The tokens that a compression changed most, with what came before them as text."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ders_core.evaluate.domains import Domain
from ders_core.pipeline.quality import WorstToken

WORST = 10
CONTEXT = 32
"""Tokens before the one that is shown."""


@dataclass(frozen=True, order=True)
class _Place:
    """kl: nats. domain, window, position: of the token that came, counted in its window from 0.
    original, model: the most likely token of each."""

    kl: float
    domain: int
    window: int
    position: int
    original: int = field(compare=False)
    model: int = field(compare=False)


@dataclass
class WorstTokens:
    """The WORST tokens of all windows that were added."""

    _places: list[_Place] = field(default_factory=list)

    def add(
        self,
        domain: int,
        window: int,
        token_kl: np.ndarray,
        original: torch.Tensor,
        model: torch.Tensor,
    ) -> None:
        """A window's tokens. token_kl: `[tokens]`. original, model: `[tokens]` int64, the most
        likely token of each."""
        for place in np.argsort(-token_kl, kind="stable")[:WORST]:
            at = int(place)
            of_token = _Place(
                float(token_kl[at]), domain, window, at + 1, int(original[at]), int(model[at])
            )
            if of_token.kl > 0:
                heapq.heappush(self._places, of_token)
        while len(self._places) > WORST:
            heapq.heappop(self._places)

    def as_text(
        self, domains: Sequence[Domain], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[WorstToken, ...]:
        """The largest KL first."""

        def text(tokens: Sequence[int]) -> str:
            return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

        shown = []
        for place in sorted(self._places, reverse=True):
            domain = domains[place.domain]
            row: list[int] = domain.windows[place.window].tolist()[domain.before :]
            begin = max(0, place.position - CONTEXT)
            shown.append(
                WorstToken(
                    domain=domain.name,
                    before=text(row[begin : place.position]),
                    came=text([row[place.position]]),
                    original=text([place.original]),
                    model=text([place.model]),
                    kl=place.kl,
                )
            )
        return tuple(shown)
