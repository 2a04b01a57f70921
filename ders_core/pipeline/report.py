"""The report of a compression: sizes and errors, group by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ReportEntry:
    """One group. Errors are over all its experts: ‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖ (Frobenius).

    base: the kind of base that the deltas are taken against. other_bases: kind of base -> ‖Ŵ−W‖/‖W‖
    with it, of the bases that were tried and not chosen. rel_error_output: √(E‖(Ŵ−W)x‖² / E‖Wx‖²)
    on the calibration's inputs, None without a calibration. remark: what the codec did otherwise
    than it was asked; usually nothing. gain, noise: a and ‖E‖/‖Δ‖ of Δ̂ = aΔ + E with E ⟂ Δ.
    noise_cost: ½ Σ C E², the KL in nats a token that E is predicted to cost; None without
    gradients.
    """

    layer: int
    projection: str
    codec: str
    bytes_before: int
    bytes_after: int
    rel_error_delta: float
    rel_error_weight: float
    seconds: float
    base: str = "mean"
    other_bases: Mapping[str, float] = field(default_factory=dict)
    rel_error_output: float | None = None
    remark: str = ""
    gain: float = 1.0
    noise: float = 0.0
    noise_cost: float | None = None


@dataclass(frozen=True)
class Report:
    """bytes: of the weight files. seconds: of this run, without an interrupted one before.
    left_aside: files beside the weights that are no part of the model, and were not copied.
    renewed: groups of an interrupted run that were encoded again, because their weights had
    changed. predicted_kl: nats a token on text like the calibration's; None without gradients, and
    where what shrunken deltas cost is not known."""

    entries: tuple[ReportEntry, ...]
    bytes_before: int
    bytes_after: int
    device: str
    seconds: float
    left_aside: tuple[str, ...] = ()
    renewed: int = 0
    predicted_kl: float | None = None

    @property
    def ratio(self) -> float:
        return self.bytes_after / self.bytes_before

    @property
    def remarks(self) -> list[str]:
        """Those of the groups, each once."""
        return list(dict.fromkeys(entry.remark for entry in self.entries if entry.remark))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        entries = tuple(ReportEntry(**entry) for entry in data["entries"])
        return cls(
            entries,
            data["bytes_before"],
            data["bytes_after"],
            data["device"],
            data["seconds"],
            tuple(data.get("left_aside", ())),
            data.get("renewed", 0),
            data.get("predicted_kl"),
        )
