"""How redundant the experts are: plain tables, a verdict, and what codecs would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ders_core.later import names_later

if TYPE_CHECKING:
    from ders_core.analysis.analyzer import analyze
    from ders_core.analysis.expectation import expected, rank_for_energy
    from ders_core.analysis.origins import Starts
    from ders_core.analysis.spectra import EXACT_BELOW, SPECTRA, Spectra
    from ders_core.analysis.tables import Analysis, of_group, square
    from ders_core.analysis.verdict import Verdict, judge, sampled_verdict

__all__ = [
    "EXACT_BELOW",
    "SPECTRA",
    "Analysis",
    "Spectra",
    "Starts",
    "Verdict",
    "analyze",
    "expected",
    "judge",
    "of_group",
    "rank_for_energy",
    "sampled_verdict",
    "square",
]

__getattr__ = names_later(
    __name__,
    {
        ".analyzer": ("analyze",),
        ".expectation": ("expected", "rank_for_energy"),
        ".origins": ("Starts",),
        ".spectra": ("EXACT_BELOW", "SPECTRA", "Spectra"),
        ".tables": ("Analysis", "of_group", "square"),
        ".verdict": ("Verdict", "judge", "sampled_verdict"),
    },
)
