"""Sums over tokens, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ders_core.evaluate.forward import Batch


@dataclass
class Totals:
    """Running sums of one comparison."""

    tokens: int = 0
    loss: float = 0.0
    kl: float = 0.0
    same_top: int = 0
    same_experts: float = 0.0
    routed: int = 0

    def add(self, batch: Batch) -> None:
        """Cross-entropy of a batch."""
        picked = batch.log_probs.gather(-1, batch.targets[:, None])
        self.loss -= float(picked.double().sum())
        self.tokens += batch.targets.numel()

    def compare(self, batch: Batch, log_probs: torch.Tensor, chosen: torch.Tensor | None) -> None:
        """KL(reference ‖ model) and agreements; log_probs and chosen are the reference's."""
        reference = log_probs.to(batch.log_probs.device)
        self.kl += divergence(reference, batch.log_probs)
        same = reference.argmax(-1) == batch.log_probs.argmax(-1)
        self.same_top += int(same.sum())
        if chosen is not None and batch.chosen is not None:
            hits = overlap(chosen.to(batch.chosen.device), batch.chosen)
            self.same_experts += float(hits.double().sum())
            self.routed += hits.numel()

    @property
    def perplexity(self) -> float:
        mean = self.loss / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


def divergence(reference: torch.Tensor, model: torch.Tensor) -> float:
    """Σ over tokens of KL(reference ‖ model) in nats; log-probabilities `[tokens, vocabulary]`.

    Each term is computed in float64, a few rows at a time. Each token's KL is at least 0 in exact
    arithmetic; what rounding of the stored float32 leaves below is cut off.
    """
    total = 0.0
    for own, other in zip(reference.split(256), model.split(256), strict=True):
        precise = own.double()
        terms = (precise.exp() * (precise - other.double())).sum(-1)
        total += float(terms.clamp_min(0).sum())
    return total


def overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """|a ∩ b| / k of two sets of experts `[layers, tokens, k]`. Returns `[layers, tokens]`."""
    hits = (first[..., :, None] == second[..., None, :]).any(-1)
    return hits.float().mean(-1)
