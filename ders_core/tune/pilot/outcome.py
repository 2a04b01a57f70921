"""What a pilot came to: plain values, which a report or a page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ders_core.tune.trials import Measurement
from ders_core.units import bytes_text, number_text, share_text

SAFE_KL = 0.01
"""Nats a token: what costs no more, up to the end of its interval, is called safe. The perplexity
is then about 1 % higher."""

Role = Literal["safe", "aggressive"]

CHOSEN_AS: Mapping[Role, str] = {"safe": "predicted safe", "aggressive": "aggressive"}
"""As reports say it; whether a size is safe is measured afterwards."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Point(_Plain):
    """role: what it was chosen as. aim: the KL that it was to keep to. asked: the predicted KL that
    was asked for, which differs from `aim` by what predictions were wrong by before. recipe: YAML.
    answers: what it wrote behind each prompt."""

    role: Role
    aim: float
    asked: float
    recipe: str
    predicted_kl: float
    foretold_bytes: int
    measured: Measurement
    answers: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What it was chosen as and its size, in a few words."""
        return f"{CHOSEN_AS[self.role]}, {bytes_text(self.measured.nbytes)}"

    @property
    def most_kl(self) -> float:
        """The upper end of the measured KL's interval."""
        high = self.measured.quality.kl_high
        return self.measured.kl if high is None else high

    @property
    def is_safe(self) -> bool:
        return self.most_kl <= SAFE_KL


class Asked(_Plain):
    """A prompt. came: what stands behind it in the text, "" if it is not from there. original: what
    the original wrote."""

    prompt: str
    came: str
    original: str


@dataclass(frozen=True)
class Risk:
    """What may go wrong, and what to do then."""

    what: str
    fallback: str


class Pilot(_Plain):
    """verdict, reason: whether the experts share a start, as a word and as sentences. bytes_total:
    of the original's weight files. calibration: the file's path. tokens, proved: tokens that were
    calibrated and measured on. texts: what both parts are, in a sentence. curve: (bytes, KL) of the
    predicted frontier, the smallest first, to one that loses nothing. points: the largest first."""

    name: str
    identity: str
    verdict: str
    reason: str
    bytes_total: int
    calibration: str
    tokens: int
    proved: int
    texts: str
    curve: tuple[tuple[int, float], ...]
    points: tuple[Point, ...]
    prompts: tuple[Asked, ...] = ()
    risks: tuple[Risk, ...] = ()

    @property
    def recommended(self) -> Point | None:
        """The smallest one that was measured to be safe; None if none is."""
        safe = [point for point in self.points if point.is_safe]
        return min(safe, key=lambda point: point.measured.nbytes, default=None)

    @property
    def lossless_bytes(self) -> int:
        """Of a file that loses nothing, predicted."""
        return self.curve[-1][0]

    @property
    def sentence(self) -> str:
        """The answer."""
        best = self.recommended
        if best is None:
            return (
                f"none of {len(self.points)} sizes was measured to be safe (a KL of {SAFE_KL:g} "
                f"nats a token at most); without loss the file takes about "
                f"{bytes_text(self.lossless_bytes)} of {bytes_text(self.bytes_total)}"
            )
        share = share_text(best.measured.nbytes / self.bytes_total)
        return (
            f"{bytes_text(best.measured.nbytes)}, {share} of the original, is the smallest size "
            f"that was measured to be safe: a KL of {number_text(best.measured.kl)} nats a token, "
            f"{SAFE_KL:g} being the most"
        )
