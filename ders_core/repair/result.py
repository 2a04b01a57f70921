"""What a repair came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ders_core.errors import EvaluationError
from ders_core.evaluate.interval import Interval
from ders_core.pipeline.quality import Quality


class NotBetter(EvaluationError):
    """A repair whose result is not kept: it would come to the same once more."""


@dataclass(frozen=True)
class RepairResult:
    """before, after: the packed checkpoint against the original, on text that was not trained on;
    after as it was written. kl_before, kl_after, change: nats a token, means over its windows with
    intervals of 95 %; change: of the same windows, after less before.

    trained: word of `settings.TRAINABLE` -> how many values were. left_out: sentences about tensors
    that stayed because the model keeps them in a form that is not known. tokens: read in all steps
    together. repeated: held-out windows that were left out because the training reads them too.
    bytes: of the weight files. needed: bytes of memory that were told before. resumed: where an
    interrupted repair went on; "" if none was.
    """

    out: str
    steps: int
    tokens: int
    trained: Mapping[str, int]
    before: Quality
    after: Quality
    kl_before: Interval
    kl_after: Interval
    change: Interval
    left_out: tuple[str, ...]
    repeated: int
    bytes: int
    needed: int
    device: str
    seconds: float
    resumed: str = ""

    @property
    def share(self) -> float:
        """KL after the repair, as a share of that before it."""
        return self.kl_after.mean / self.kl_before.mean if self.kl_before.mean else 1.0

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        qualities = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        return fields | qualities | {"share": self.share}
