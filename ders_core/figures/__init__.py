"""Plotly figures of analysis tables and of runs; used by the pages and by the HTML report."""

from ders_core.figures.allocation import bits_map, frontier
from ders_core.figures.curves import energy_curve, size_quality, spectrum, value_histogram
from ders_core.figures.kept_spectrum import Kept
from ders_core.figures.maps import (
    Metric,
    difference_energy,
    model_map,
    norm_bars,
    norm_ratio_over_depth,
    rank_map,
)
from ders_core.figures.pair_blocks import pair_blocks, pair_table
from ders_core.figures.pair_map import Range, similarity_heatmap
from ders_core.figures.report import report_html
from ders_core.figures.run_errors import errors_over_depth, kl_on_texts
from ders_core.figures.style import EXPERT_COLOURS
from ders_core.figures.training import (
    SMOOTH,
    balance_curve,
    latest_loads,
    loss_curves,
    memory_curve,
    rate_curve,
    routing_spread,
)

__all__ = [
    "EXPERT_COLOURS",
    "SMOOTH",
    "Kept",
    "Metric",
    "Range",
    "balance_curve",
    "bits_map",
    "difference_energy",
    "energy_curve",
    "errors_over_depth",
    "frontier",
    "kl_on_texts",
    "latest_loads",
    "loss_curves",
    "memory_curve",
    "model_map",
    "norm_bars",
    "norm_ratio_over_depth",
    "pair_blocks",
    "pair_table",
    "rank_map",
    "rate_curve",
    "report_html",
    "routing_spread",
    "similarity_heatmap",
    "size_quality",
    "spectrum",
    "value_histogram",
]
