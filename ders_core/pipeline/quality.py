"""What an evaluation measures, and how each figure is named, formatted and explained everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from ders_core.units import formatted


class TextQuality(BaseModel):
    """tokens: predicted ones. perplexity: exp of the mean cross-entropy, without auxiliary losses.

    kl: mean KL(reference ‖ model) in nats a token. kl_low, kl_high: where that mean lies with a
    probability of 95 %, by the bootstrap over windows; None of too few windows. kl_p95, kl_p99:
    percentiles over tokens. top1_agreement: share of tokens whose most likely prediction is the
    same. routing_agreement: mean over tokens and MoE layers of the share of experts given to a
    token that are the same, after everything that a model does to its router's scores; also None if
    that cannot be seen in the model. All figures of the comparison are None without a reference;
    those that earlier versions did not measure are None in their results.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    kl: float | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    kl_p95: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None
    routing_agreement: float | None = None

    @property
    def perplexity_change(self) -> float | None:
        """Relative change against the reference: 0.02 is 2 % worse; None without a reference."""
        if not self.reference_perplexity:
            return None
        return self.perplexity / self.reference_perplexity - 1


class DomainQuality(TextQuality):
    """One of several texts that were measured apart, by its name."""

    name: str


class WorstToken(BaseModel):
    """A token at which the two models differ most. kl: nats. before: the text before it. came: the
    token that came. original, model: what each held for most likely. domain: "" for a text without
    a name."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    domain: str = ""
    before: str
    came: str
    original: str
    model: str
    kl: float


class Quality(TextQuality):
    """All texts together. domains: each alone, if they were given names. worst: the largest KL
    first. dtype: in which was computed; "" in results of earlier versions."""

    domains: tuple[DomainQuality, ...] = ()
    worst: tuple[WorstToken, ...] = ()
    dtype: str = ""
    device: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `ders eval --json` prints them."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Figure:
    """How one figure is shown.

    key: its name in JSON and in tables. label: its full name. short: the header of a column.
    format: printf style, of the value times `scale`; see `units.formatted`. help: one sentence for
    a tooltip.
    """

    key: str
    label: str
    short: str
    format: str
    help: str
    scale: float = 1

    def text(self, value: float) -> str:
        """The value as people read it, such as '98.8 %'."""
        return formatted(self.format, self.scale * value)


TOKENS = Figure("tokens", "tokens evaluated", "tokens", "%d", "Tokens that were predicted.")
PERPLEXITY = Figure(
    "perplexity", "perplexity", "perplexity", "%.4g", "exp of the mean cross-entropy a token."
)
REFERENCE_PERPLEXITY = Figure(
    "reference_perplexity",
    "perplexity of the original",
    "original's perplexity",
    "%.4g",
    "Of the original, on the same text.",
)
PERPLEXITY_CHANGE = Figure(
    "perplexity_change",
    "change of the perplexity",
    "change",
    "%+.3g %%",
    "Perplexity against the original's.",
    scale=100,
)
KL = Figure(
    "kl",
    "KL(original ‖ this), nats a token",
    "KL",
    "%.3g",
    "KL(original ‖ compressed), nats a token; 0: the same.",
)
KL_LOW = Figure(
    "kl_low",
    "KL, lower end of its interval",
    "KL from",
    "%.3g",
    "The mean KL lies above with a probability of 97.5 %: windows of the text were drawn again.",
)
KL_HIGH = Figure(
    "kl_high",
    "KL, upper end of its interval",
    "KL to",
    "%.3g",
    "The mean KL lies below with a probability of 97.5 %: windows of the text were drawn again.",
)
KL_P95 = Figure(
    "kl_p95",
    "KL of the 95th percentile of tokens",
    "KL 95 %",
    "%.3g",
    "One token in 20 has a larger KL.",
)
KL_P99 = Figure(
    "kl_p99",
    "KL of the 99th percentile of tokens",
    "KL 99 %",
    "%.3g",
    "One token in 100 has a larger KL.",
)
TOP1_AGREEMENT = Figure(
    "top1_agreement",
    "same most likely token",
    "same top token",
    "%.3g %%",
    "Share of tokens whose most likely prediction is the same.",
    scale=100,
)
ROUTING_AGREEMENT = Figure(
    "routing_agreement",
    "same experts chosen",
    "same experts",
    "%.3g %%",
    "Share of chosen experts that stay the same.",
    scale=100,
)
DELTA_ERROR = Figure(
    "rel_error_delta",
    "‖Ŵ−W‖/‖Δ‖",
    "‖Ŵ−W‖/‖Δ‖",
    "%.3g",
    "Error of the weights relative to the deltas; measured.",
)
PREDICTED_KL = Figure(
    "predicted_kl",
    "predicted KL, nats a token",
    "predicted KL",
    "%.3g",
    "KL(original ‖ compressed) as the calibration's gradients predict it, nats a token, on text "
    "like the calibration's; on other text it may be twice as much. With a calibration that knows "
    "the routers, it has what other choices of experts cost. Above 0.1 it may be far too low.",
)
GAIN = Figure(
    "gain",
    "gain",
    "gain",
    "%.3g",
    "How much of the deltas is given back: a in Δ̂ = aΔ + E, where E is no part of Δ. What is "
    "missing, (1−a)Δ, points the same way in every layer, so it adds up over the model and KL "
    "grows with the square of the sum: a gain near 1 matters more than a small error.",
)
NOISE = Figure(
    "noise",
    "noise",
    "noise",
    "%.3g",
    "‖E‖/‖Δ‖ in Δ̂ = aΔ + E: what is no part of the deltas. Errors of different weights are "
    "independent and mostly cancel, so noise above 1 at gain 1 may cost less than a small error "
    "with a low gain.",
)
WEIGHT_ERROR = Figure(
    "rel_error_weight",
    "‖Ŵ−W‖/‖W‖",
    "‖Ŵ−W‖/‖W‖",
    "%.3g",
    "Error relative to the weights: it compares runs with different bases.",
)

NOISE_COST = Figure(
    "noise_cost",
    "KL that the noise is predicted to cost, nats a token",
    "noise costs, KL",
    "%.2g",
    "½ Σ C E² with the calibration's curvature C: the group's part of the predicted KL, nats a "
    "token, without what is missing of the deltas.",
)
OUTPUT_ERROR = Figure(
    "rel_error_output",
    "error of outputs",
    "error of outputs",
    "%.3g",
    "√(E‖(Ŵ−W)x‖² / E‖Wx‖²) on the calibration's inputs.",
)

ROUNDING = Figure(
    "rounding",
    "rounding's share of the error",
    "rounding",
    "%.2g %%",
    "How much of ‖Ŵ−W‖² is rounding to the checkpoint's dtype, which loading in float32 (or "
    "`ders synthesize --dtype float32`) leaves out; below 0: rounding brings weights nearer to the "
    "original.",
    scale=100,
)

EVALUATED = (
    KL,
    KL_LOW,
    KL_HIGH,
    KL_P95,
    KL_P99,
    PERPLEXITY,
    REFERENCE_PERPLEXITY,
    TOP1_AGREEMENT,
    ROUTING_AGREEMENT,
    TOKENS,
)
"""The numbers of `TextQuality`; what the compression costs comes first."""

OUTLOOK = (PREDICTED_KL, GAIN, NOISE)
"""What a report says of the whole model."""

COMPARED = (
    KL,
    *OUTLOOK,
    KL_P95,
    KL_P99,
    PERPLEXITY,
    PERPLEXITY_CHANGE,
    TOP1_AGREEMENT,
    ROUTING_AGREEMENT,
    WEIGHT_ERROR,
)
"""The figures by which runs are compared, in the order of a table's columns."""


def figure_rows(figures: Sequence[Figure], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value as text) of each figure that is known."""
    return [
        (figure.label, figure.text(values[figure.key]))
        for figure in figures
        if values.get(figure.key) is not None
    ]


def evaluated_rows(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of each measured figure, the KL with its interval, and of how it was computed;
    measured: `Quality.to_dict()`."""
    ends = (KL, KL_LOW, KL_HIGH)
    rows = figure_rows([figure for figure in EVALUATED if figure not in ends], measured)
    if measured.get(KL.key) is not None:
        rows.insert(0, (KL.label, kl_text(measured)))
    if measured.get("dtype"):
        device = measured.get("device")
        rows.append(("computed in", measured["dtype"] + (f" on {device}" if device else "")))
    return rows


def kl_text(measured: Mapping[str, Any]) -> str:
    """The KL with its interval of 95 %, where there is one: '0.0120 (0.0100 to 0.0140)'.

    measured: `TextQuality.model_dump()`.
    """
    low, high = measured.get(KL_LOW.key), measured.get(KL_HIGH.key)
    interval = "" if low is None or high is None else f" ({KL.text(low)} to {KL.text(high)})"
    return KL.text(measured[KL.key]) + interval
