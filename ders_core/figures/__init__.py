"""Plotly figures of analysis tables and of runs; used by the pages and by the HTML report."""

from ders_core.figures.curves import energy_curve, size_quality, spectrum, value_histogram
from ders_core.figures.maps import (
    difference_energy,
    model_map,
    norm_bars,
    norm_ratio_over_depth,
    rank_map,
    similarity_heatmap,
)
from ders_core.figures.report import report_html

__all__ = [
    "difference_energy",
    "energy_curve",
    "model_map",
    "norm_bars",
    "norm_ratio_over_depth",
    "rank_map",
    "report_html",
    "similarity_heatmap",
    "size_quality",
    "spectrum",
    "value_histogram",
]
