"""What an evaluation measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Quality:
    """tokens: predicted ones. perplexity: exp of the mean cross-entropy, without auxiliary losses.

    kl: mean KL(reference ‖ model) in nats a token. top1_agreement: share of tokens whose most
    likely prediction is the same. routing_agreement: mean over tokens and MoE layers of the share
    of chosen experts that are the same. The last four are None without a reference.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float | None
    kl: float | None
    top1_agreement: float | None
    routing_agreement: float | None
    device: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
