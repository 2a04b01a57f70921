"""One model on one text, and what several texts come to together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ders_core.evaluate.forward import Answers
from ders_core.evaluate.interval import LEAST_WINDOWS, Interval
from ders_core.evaluate.metrics import Compared, Totals
from ders_core.evaluate.reference import Kept

PERCENTILES = {"kl_p95": 0.95, "kl_p99": 0.99}


@dataclass(frozen=True)
class Measured:
    """totals: of all windows. token_kl: nats, float64, an array `[tokens]` for each window that was
    compared. Windows of one text are equally long."""

    totals: Totals = field(default_factory=Totals)
    token_kl: list[np.ndarray] = field(default_factory=list)

    def compare(self, answers: Answers, reference: Kept) -> Compared:
        """Add a window, and say what is known of its tokens."""
        self.totals.add(answers)
        compared = self.totals.compare(answers, reference)
        self.token_kl.append(compared.token_kl.numpy())
        return compared

    @property
    def kl(self) -> list[float]:
        """Nats a token, of each window."""
        return [float(window.mean()) for window in self.token_kl]

    @property
    def mean(self) -> float:
        """KL in nats a token."""
        return self.totals.kl / self.totals.tokens


def figures(texts: Sequence[Measured], references: Sequence[Totals] | None) -> dict[str, Any]:
    """The fields of `ders_core.pipeline.quality.TextQuality` over all texts together.

    references: the original on the same texts; None if there is none.
    """
    totals = Totals.joined([text.totals for text in texts])
    alone = {"tokens": totals.tokens, "perplexity": totals.perplexity}
    if references is None:
        return alone
    together = np.concatenate([window for text in texts for window in text.token_kl])
    percentiles = np.quantile(together, list(PERCENTILES.values()))
    interval = _interval(texts)
    return alone | {
        "reference_perplexity": Totals.joined(references).perplexity,
        "kl": totals.kl / totals.tokens,
        "kl_low": None if interval is None else interval.low,
        "kl_high": None if interval is None else interval.high,
        **dict(zip(PERCENTILES, map(float, percentiles), strict=True)),
        "top1_agreement": totals.same_top / totals.tokens,
        "routing_agreement": totals.routing_agreement,
    }


def _interval(texts: Sequence[Measured]) -> Interval | None:
    """Of the mean KL; None if a text has too few windows to tell."""
    if min(len(text.token_kl) for text in texts) < LEAST_WINDOWS:
        return None
    return Interval.of_texts(
        [text.kl for text in texts], [float(text.totals.tokens) for text in texts]
    )
