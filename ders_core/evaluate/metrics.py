"""Sums over tokens, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from ders_core.compute.brought import bring_together
from ders_core.compute.sent import sent
from ders_core.evaluate.forward import Answers
from ders_core.evaluate.reference import Kept
from ders_core.hf.routing import NONE

ROWS = 64
"""Tokens whose KL is computed at once: their float64 rows are what takes memory."""


@dataclass(frozen=True)
class Compared:
    """One window, on the CPU. token_kl: the KL of each token, `[tokens]` float64. top: the most
    likely token of the model, `[tokens]` int64."""

    token_kl: torch.Tensor
    top: torch.Tensor


@dataclass
class Totals:
    """Running sums of one model, and of its comparison with a reference."""

    tokens: int = 0
    loss: float = 0.0
    kl: float = 0.0
    same_top: int = 0
    same_experts: float = 0.0
    routed: int = 0
    unrouted: int = 0

    def add(self, answers: Answers) -> None:
        """Cross-entropy of one window."""
        picked = answers.log_probs.gather(-1, answers.targets[:, None])
        self.loss -= float(picked.double().sum())
        self.tokens += answers.targets.numel()

    def compare(self, answers: Answers, reference: Kept) -> Compared:
        """KL(reference ‖ model) and agreements with the reference's answers to the same window.

        Routings are compared if both were seen, with as many MoE layers and as many experts. A GPU
        is waited for once for the sums, and to copy the reference's log-probabilities: pinned
        memory for these would be hundreds of megabytes, which torch keeps.
        """
        device = answers.log_probs.device
        found = [
            divergences(reference.log_probs.to(device), answers.log_probs),
            answers.log_probs.argmax(-1),
        ]
        if (
            reference.chosen is None
            or answers.chosen is None
            or reference.chosen.shape != answers.chosen.shape
        ):
            self.unrouted += 1
        else:
            shares = overlap(sent(reference.chosen, device), answers.chosen)
            found.append(shares.double().sum())
            self.routed += shares.numel()
        token_kl, top, *same_experts = bring_together(found)
        self.kl += float(token_kl.sum())
        self.same_top += int((reference.top == top).sum())
        self.same_experts += sum(map(float, same_experts))
        return Compared(token_kl, top)

    @classmethod
    def joined(cls, parts: Sequence[Totals]) -> Totals:
        """The sums of several texts together."""
        return cls(*(sum(getattr(part, each.name) for part in parts) for each in fields(cls)))

    @property
    def routing_agreement(self) -> float | None:
        """None if any window's routings could not be compared."""
        return self.same_experts / self.routed if self.routed and not self.unrouted else None

    @property
    def perplexity(self) -> float:
        mean = self.loss / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


def divergences(reference: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """KL(reference ‖ model) of each token in nats, `[tokens]` float64; log-probabilities
    `[tokens, vocabulary]`.

    Both are normalised once more in float64, a few rows at a time. Without that, a row that float32
    lets sum to 1 + 1e-7 would outweigh the KL of two models that are nearly the same, and KL could
    be negative; with it, only the rounding of float64, about 1e-16, is cut off at 0.
    """
    tokens = []
    for reference_rows, model_rows in zip(reference.split(ROWS), model.split(ROWS), strict=True):
        first = reference_rows.double().log_softmax(-1)
        second = model_rows.double().log_softmax(-1)
        tokens.append((first.exp() * (first - second)).sum(-1).clamp_min(0))
    return torch.cat(tokens)


def overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """|a ∩ b| / max(|a|, |b|) of two sets of experts `[layers, tokens, k]`, where `NONE` is no
    expert; 1 for two empty ones. Returns `[layers, tokens]`."""
    hits = (first[..., :, None] == second[..., None, :]).any(-1) & (first != NONE)
    most = torch.maximum((first != NONE).sum(-1), (second != NONE).sum(-1))
    return torch.where(most > 0, hits.sum(-1) / most.clamp_min(1), 1.0)
