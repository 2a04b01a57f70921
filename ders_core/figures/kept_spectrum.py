"""What a codec keeps of deltas, drawn into their spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import plotly.graph_objects as go

from ders_core.analysis import Analysis, of_group
from ders_core.codecs import Expected
from ders_core.figures.style import ACCENT, KEPT, level
from ders_core.later import np, pd
from ders_core.units import number_text


@dataclass(frozen=True)
class Kept:
    """rank: how many directions a codec keeps; None of one that codes entries. loss: what is
    expected to become of the deltas."""

    rank: int | None
    loss: Expected


def draw_kept(
    figure: go.Figure,
    mean: pd.Series,
    kept: Kept,
    analysis: Analysis,
    layer: int,
    projection: str,
) -> None:
    """The mean spectrum that is left, as an area: of a low rank up to that rank. Of codecs that
    code entries all of it times the gain, and a line at the largest singular value of their noise:
    what is below is drowned in it. mean: σ by index."""
    index, sigma = mean.index.to_numpy(dtype=float), mean.to_numpy(dtype=float)
    if kept.rank is None:
        sigma = kept.loss.gain * sigma
        words = f"kept, times {number_text(kept.loss.gain)}"
    else:
        last = min(float(kept.rank), index[-1])
        sigma = np.append(sigma[index < last], np.interp(last, index, sigma))
        index = np.append(index[index < last], last)
        words = f"kept, rank {kept.rank}"
    figure.add_scatter(
        x=index,
        y=sigma,
        name=words,
        mode="lines+markers" if len(index) == 1 else "lines",
        line={"width": 0},
        fill="tozeroy",
        fillcolor=KEPT,
        hoverinfo="skip",
    )
    edge = noise_edge(analysis, layer, projection, kept)
    if edge > 0:
        level(figure, edge, color=ACCENT, width=2)
        figure.add_annotation(  # on a logarithmic axis annotations count in powers of ten
            x=0.99,
            xref="paper",
            xanchor="right",
            y=math.log10(edge),
            yanchor="bottom",
            text="noise of the codec",
            showarrow=False,
        )


def noise_edge(analysis: Analysis, layer: int, projection: str, kept: Kept) -> float:
    """The largest singular value of noise as large as a codec's, if its entries are independent:
    s·(√m + √n), with s²·m·n = ‖E‖² (Marchenko and Pastur 1967). 0 of a low rank, which leaves out
    whole directions."""
    if kept.rank is not None:
        return 0.0
    group = of_group(analysis.groups, layer, projection).iloc[0]
    out, width = int(group["out"]), int(group["in"])
    norms = of_group(analysis.experts, layer, projection)["norm_delta"].to_numpy()
    noise = kept.loss.noise * math.sqrt(float((norms**2).mean()))
    return noise / math.sqrt(out * width) * (math.sqrt(out) + math.sqrt(width))
