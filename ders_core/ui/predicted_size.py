"""What a recipe leaves of a checkpoint, in words: exact, at most, or about; or not known yet."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.pipeline.forecast import Forecast
from ders_core.pipeline.plan import Plan
from ders_core.units import bytes_text, share_text

OPEN = "not known yet"
"""Of a size for which there is no bound below the original's."""


@dataclass(frozen=True)
class PredictedSize:
    """bound: what stands before the number: "", "at most" or "about". nbytes: of the weight files;
    None if the data decide, and nothing was predicted from them: then the bound may lie above the
    original, which says nothing. share: nbytes of the original's."""

    bound: str
    nbytes: int | None
    share: float

    @classmethod
    def of(cls, plan: Plan, told: Forecast | None) -> PredictedSize:
        """told: what a sample of the checkpoint foretold, if it was asked."""
        if told is not None:
            bound, nbytes = "" if told.exact else "about", told.bytes_after
        else:
            bound, nbytes = "" if plan.exact else "at most", plan.bytes_after
        is_open = bound == "at most" and nbytes >= plan.bytes_before
        return cls(bound, None if is_open else nbytes, nbytes / plan.bytes_before)

    @property
    def bytes_words(self) -> str:
        """The number alone."""
        return OPEN if self.nbytes is None else bytes_text(self.nbytes)

    @property
    def share_words(self) -> str:
        return OPEN if self.nbytes is None else share_text(self.share)

    def label(self, text: str) -> str:
        """The label of a number, with its bound: 'After, at most'."""
        return f"{text}, {self.bound}" if self.bound and self.nbytes is not None else text

    @property
    def with_bound(self) -> str:
        """'at most 3.40 MB'."""
        known = self.nbytes is not None
        return f"{self.bound} {self.bytes_words}".strip() if known else OPEN
