"""The logarithmic axis of KLs."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from ders_core.later import np

LEAST_KL = 1e-7
"""Nats a token: less is rounding, in which no two files of one model differ. Such files are not
drawn, so that they do not widen the plot."""


def kl_axis(figure: go.Figure) -> dict[str, Any]:
    """The y axis of what is drawn already: numbers at powers of ten, or closer where the KLs span
    less than one."""
    kls = np.concatenate([np.asarray(trace.y, dtype=np.float64) for trace in figure.data])
    drawn = kls[kls > 0]
    is_wide = len(drawn) > 0 and drawn.max() >= 10 * drawn.min()
    return {"type": "log", "tickformat": "~g", **({"dtick": 1} if is_wide else {})}
