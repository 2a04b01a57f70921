"""What may go wrong with a pilot's sizes, and what to do then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ders_core.evaluate.domains import Domain
from ders_core.recipe.numbers import spell_numbers
from ders_core.tune.cliffs import Measured, cliffs
from ders_core.tune.pilot.outcome import SAFE_KL, Point, Risk
from ders_core.tune.scores import Scores
from ders_core.units import bytes_text, listed, number_text

WRONG = 1.5
"""Measured over predicted, from which on a prediction is told to be wrong."""

WORSE = 2.0
"""A text's KL over that of all, from which on it is told."""

LOUD = 0.5
"""Nats: a 99th percentile of tokens from which on it is told."""

SHOWN = 4


def risks_of(
    verdict: str, scores: Scores, points: Sequence[Point], domains: Sequence[Domain]
) -> tuple[Risk, ...]:
    """verdict: a word of `ders_core.analysis.verdict`. points: the largest first. domains: the
    texts that were measured on."""
    found = [
        *_of_verdict(verdict),
        *_of_experts(scores),
        *_of_sizes(points),
        *_of_predictions(points),
        *_of_texts(points, domains),
        *_of_tokens(points),
    ]
    return tuple(found)


def _of_verdict(verdict: str) -> Iterator[Risk]:
    if verdict != "upcycled":
        yield Risk(
            "The experts share no start, or only in part, so that deltas save less than they do "
            "elsewhere.",
            "Compare with plain coding at the same size: ders compress --recipe plain-4bit.",
        )


def _of_experts(scores: Scores) -> Iterator[Risk]:
    if scores.rare:
        layers = spell_numbers({rare.layer for rare in scores.rare})
        count = sum(len(rare.rare) for rare in scores.rare)
        told = "; ".join(rare.sentence for rare in scores.rare[:SHOWN])
        more = f"; and {len(scores.rare) - SHOWN} layers more" if scores.rare[SHOWN:] else ""
        yield Risk(
            f"{count} experts were rarely chosen on this text, and what errors in them cost is a "
            f"guess: {told}{more}.",
            f"Calibrate on more text, or on text that needs them; or keep these layers as they "
            f"are: ders tune --keep {layers}.",
        )


def _of_sizes(points: Sequence[Point]) -> Iterator[Risk]:
    measured = [
        Measured(point.measured.nbytes, point.measured.kl, point.predicted_kl) for point in points
    ]
    for cliff in cliffs(measured):
        yield Risk(
            f"There is a cliff: {cliff.sentence}.",
            f"Stay at {bytes_text(cliff.large)} or above, or look for the edge: ders prove "
            "--pareto.",
        )


def _of_predictions(points: Sequence[Point]) -> Iterator[Risk]:
    wrong = [
        f"{point.label}: {number_text(point.measured.kl / point.predicted_kl, 2)} times"
        for point in points
        if point.predicted_kl > 0
        and not 1 / WRONG <= point.measured.kl / point.predicted_kl <= WRONG
    ]
    if wrong:
        yield Risk(
            f"What was measured is not what was predicted ({'; '.join(wrong)}), so sizes between "
            "the points may be off by as much.",
            "Trust the measured points alone; ders prove measures and solves again at one size.",
        )


def _of_texts(points: Sequence[Point], domains: Sequence[Domain]) -> Iterator[Risk]:
    names = [domain.name for domain in domains if domain.name]
    for point in points:
        worse = [
            f"{each.name} {number_text(each.kl)}"
            for each in point.measured.quality.domains
            if each.kl is not None and each.kl > WORSE * point.measured.kl and each.kl > SAFE_KL
        ]
        if worse:
            yield Risk(
                f"At {point.label}, some texts lose much more than all together (KL "
                f"{number_text(point.measured.kl)}): {listed(worse)}.",
                "Give more of these texts to --text, or take a larger point.",
            )
    measured = f"the texts {listed(names)}" if names else "one text"
    yield Risk(
        f"All figures are of {measured}; another task or language may lose more.",
        "Measure a point on text of your task before you use it: ders eval --text task=FILE; if it "
        "loses too much there, take the next larger point.",
    )


def _of_tokens(points: Sequence[Point]) -> Iterator[Risk]:
    safe = [point for point in points if point.is_safe]
    for point in safe[-1:]:
        loud = point.measured.quality.kl_p99
        if loud is not None and loud > LOUD:
            yield Risk(
                f"At {point.label}, one token in 100 has a KL above {number_text(loud, 2)} nats, "
                "though the mean is small.",
                "Read the tokens that changed most, below; if they matter, take a larger point.",
            )
    if points and not safe:
        yield Risk(
            f"No point is safe: each may cost more than {SAFE_KL:g} nats a token.",
            "Compress without loss (ders compress --recipe lossless-whole), or calibrate on text "
            "that is more like what is measured on.",
        )
