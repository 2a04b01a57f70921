"""An analysis as one self-contained page."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ders_core.analysis import Analysis, Spectra
from ders_core.analysis.report_sizes import json_bytes, parquet_bytes
from ders_core.checkpoint import ExpertGroup
from ders_core.errors import OutputError
from ders_core.figures import curves, maps, pair_map
from ders_core.figures.page import Page
from ders_core.files.output import new_file
from ders_core.units import number_text

SUFFIXES = (".html", ".json", ".parquet")


def report_html(analysis: Analysis) -> str:
    """HTML with plotly's script inlined once: the verdict, the maps, each layer's figures."""
    figures: list[tuple[str, str, list[go.Figure]]] = [
        ("The model", "", [maps.model_map(analysis), maps.norm_ratio_over_depth(analysis)])
    ]
    if not analysis.curves.empty:
        figures.append(("Rank", "", [maps.rank_map(analysis)]))
    for layer, projection in analysis.group_keys():
        of_group = [pair_map.similarity_heatmap(analysis, layer, projection)]
        if not analysis.curves.empty:
            of_group.append(curves.spectrum(analysis, layer, projection))
        of_group.append(curves.value_histogram(analysis, layer, projection))
        about = analysis.about_clusters(layer, projection)
        figures.append((f"Layer {layer}, {projection}", about, of_group))
    title = str(analysis.meta.get("name", analysis.family))
    page = Page(f"{title}: redundancy of experts", f"{title}: how alike its experts are")
    page.paragraph(analysis.verdict.sentence, "lead")
    page.html(_table(analysis))
    for heading, about, drawn in figures:
        page.heading(heading)
        if about:
            page.paragraph(about)
        for figure in drawn:
            page.figure(figure)
    return page.text()


def _table(analysis: Analysis) -> str:
    columns = {
        "layer": "layer",
        "projection": "projection",
        "experts": "experts",
        "norm_ratio": "‖Δ‖/‖W_base‖",
        "mean_one_minus_cos": "mean 1−cos",
        "max_one_minus_cos": "max 1−cos",
        "clusters": "bases that pay",
        "cluster_gain": "delta energy left with them",
    }
    table = analysis.groups[list(columns)].rename(columns=columns)
    text: str = table.to_html(index=False, border=0, float_format=number_text)
    return text


@contextmanager
def new_report(
    path: Path, groups: Sequence[ExpertGroup], spectra: Spectra
) -> Iterator[Callable[[Analysis], None]]:
    """Yield a function that writes an analysis to the new file `path`, by its ending; for a block
    that makes the analysis first.

    groups, spectra: what will be analysed; the room on the disk for a report of that is checked
    before the block. A block that ends with an error leaves nothing. Raises OutputError, before
    the block where that can be, if the file exists or cannot be written, or the ending is unknown.
    """
    if path.suffix not in SUFFIXES:
        raise OutputError(f"{path.name}: end the file's name in {', '.join(SUFFIXES)}")
    with new_file(path, needs=_needs(path.suffix, groups, spectra)) as aside:

        def write(analysis: Analysis) -> None:
            if path.suffix == ".parquet":
                content = io.BytesIO()  # pyarrow removes a file that it cannot write
                analysis.groups.to_parquet(content)
                aside.write_bytes(content.getvalue())
            else:
                pieces = analysis.json_pieces()
                with open(aside, "w", encoding="utf-8") as file:
                    file.writelines([report_html(analysis)] if path.suffix == ".html" else pieces)

        yield write


def _needs(suffix: str, groups: Sequence[ExpertGroup], spectra: Spectra) -> int:
    """Bytes of a report at most; of a page, those of its script, which is most of a small one."""
    if suffix == ".html":
        return len(get_plotlyjs().encode())
    return json_bytes(groups, spectra) if suffix == ".json" else parquet_bytes(groups)
