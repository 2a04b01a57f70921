"""The report of a compression: sizes and errors, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from ders_core.pipeline.predicted import BEYOND_SQUARES, OtherCost
from ders_core.pipeline.quality import GAIN, NOISE, PREDICTED_KL

KEPT = "keep"
"""The label of a group that stays as it is."""


@dataclass(frozen=True)
class ReportEntry:
    """One group. Errors are over all its experts: ‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖ (Frobenius).

    base: the kind of base that the deltas are taken against. other_bases: kind of base ->
    ‖Ŵ−W‖/‖W‖ with it, of the bases that were tried and not chosen. rel_error_output: √(E‖(Ŵ−W)x‖²
    / E‖Wx‖²) on the calibration's inputs, of 1024 rows of larger matrices, None without a
    calibration. remark: what the codec did otherwise than it was asked; usually nothing. gain,
    noise: a and ‖E‖/‖Δ‖ of Δ̂ = aΔ + E with E ⟂ Δ; None in reports of earlier versions.
    noise_cost: ½ Σ C E², the KL in nats a token that E is predicted to cost; None without
    gradients. router_noise: ½ Σ R E², how far E moves later choices of experts, see
    `ders_core.pipeline.tipping`; None where that was not measured.
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
    gain: float | None = None
    noise: float | None = None
    noise_cost: float | None = None
    router_noise: float | None = None

    base_codec: str = KEPT
    """How the base itself is coded."""
    rounding: float | None = None
    """The share of ‖Ŵ−W‖² that is rounding to the dtype of the weights, which loading in float32
    leaves out, measured at some rows of one expert of each codec; below 0 where rounding brings
    weights nearer to the original. None in reports of earlier versions."""

    effective_gain: float | None = None
    """The gain by which what is missing of the deltas is predicted to cost, see
    `ders_core.pipeline.effective_gain`; that of the weights without gradients. None in reports of
    earlier versions."""

    @property
    def title(self) -> str:
        return f"layer {self.layer}, {self.projection}"

    @property
    def is_replaced(self) -> bool:
        return self.codec != KEPT


@dataclass(frozen=True)
class OtherReport:
    """A tensor outside the experts that is coded; as `ReportEntry`."""

    name: str
    kind: str
    codec: str
    bytes_before: int
    bytes_after: int
    rel_error_weight: float
    seconds: float
    remark: str = ""
    noise_cost: float | None = None
    router_noise: float | None = None
    before: int = -1
    """The layer behind which the first routers are that its errors reach; −1: all."""
    rounding: float | None = None
    """As of `ReportEntry`."""

    @property
    def title(self) -> str:
        return self.name

    @property
    def costs(self) -> OtherCost:
        return OtherCost(self.rel_error_weight, self.noise_cost, self.router_noise, self.before)


@dataclass(frozen=True)
class Outlook:
    """What a compression does to the model, as far as it is known without measuring it on a text.

    predicted_kl: as in `Report`. gain, noise: means over the groups that are replaced, each group
    counted once; None where there are none, where one is not known, and in reports of earlier
    versions.
    """

    predicted_kl: float | None = None
    gain: float | None = None
    noise: float | None = None

    @classmethod
    def of(
        cls, predicted_kl: float | None, groups: Sequence[tuple[float | None, float | None]]
    ) -> Outlook:
        """groups: gain and noise of each group that is replaced, None where they are not known."""
        gains = [gain for gain, _ in groups if gain is not None]
        noises = [noise for _, noise in groups if noise is not None]
        if not groups or not len(gains) == len(noises) == len(groups):
            return cls(predicted_kl)
        return cls(predicted_kl, fmean(gains), fmean(noises))

    @property
    def text(self) -> str:
        """In one line; empty if nothing is known."""
        parts = []
        if self.predicted_kl is not None:
            predicted = PREDICTED_KL.text(self.predicted_kl)
            parts.append(f"predicted KL {predicted} nats a token, on text like the calibration's")
            if self.predicted_kl > BEYOND_SQUARES:
                parts.append("errors so large may cost far more, so measure it")
        if self.gain is not None and self.noise is not None:
            parts.append(
                f"gain {GAIN.text(self.gain)}, noise {NOISE.text(self.noise)} "
                "(means over the replaced groups)"
            )
        return "; ".join(parts)


@dataclass(frozen=True)
class Report:
    """bytes: of the weight files. seconds: of this run, without an interrupted one before.
    left_aside: files beside the weights that are no part of the model, and were not copied.
    linked_out: links to files outside of the checkpoint, which were not copied either.
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
    linked_out: tuple[str, ...] = ()
    others: tuple[OtherReport, ...] = ()
    """The tensors outside the experts that are coded."""
    missed: str = ""
    """By how much the recipe's budget is missed, as a sentence; empty where it is met, and without
    one."""

    @property
    def ratio(self) -> float:
        return self.bytes_after / self.bytes_before

    @property
    def rounding(self) -> float | None:
        """The mean over the replaced groups of how much of ‖Ŵ−W‖² is rounding; None where there are
        none, or where it is not known."""
        shares = [entry.rounding for entry in self.entries if entry.is_replaced]
        known = [share for share in shares if share is not None]
        return fmean(known) if known and len(known) == len(shares) else None

    @property
    def outlook(self) -> Outlook:
        replaced = [entry for entry in self.entries if entry.is_replaced]
        return Outlook.of(self.predicted_kl, [(entry.gain, entry.noise) for entry in replaced])

    @property
    def remarks(self) -> list[str]:
        """Those of the groups, each once."""
        remarks = [entry.remark for entry in self.entries]
        remarks += [other.remark for other in self.others]
        return list(dict.fromkeys(filter(None, remarks)))

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
            tuple(data.get("linked_out", ())),
            tuple(OtherReport(**other) for other in data.get("others", ())),
            data.get("missed", ""),
        )
