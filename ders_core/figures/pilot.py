"""A pilot as one self-contained page, on which a person can decide without the app."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape

import plotly.graph_objects as go

from ders_core.figures.kl_axis import LEAST_KL, kl_axis
from ders_core.figures.measured import column, worst_tokens
from ders_core.figures.measured_dots import Dot, add_dots
from ders_core.figures.page import Page
from ders_core.figures.style import ACCENT, PERCENT, TUNED, finish, percent
from ders_core.pipeline.quality import (
    KL,
    KL_P99,
    PERPLEXITY_CHANGE,
    TOP1_AGREEMENT,
    kl_text,
)
from ders_core.tune.pilot.outcome import CHOSEN_AS, SAFE_KL, Asked, Pilot, Point, Role
from ders_core.units import bytes_text, count_text, number_text, visible

COLOURS: Mapping[Role, str] = {"safe": "#0072b2", "aggressive": ACCENT}

STYLE = """
td:first-child,th:first-child{text-align:left}
.sheet>table:not(.words) td{white-space:nowrap}
tr.best td{background:#eaf4ee;font-weight:600}
.answers{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr))}
.answer{border:1px solid #dde3e8;border-radius:4px;padding:.5rem .75rem;min-width:0}
.answer h3{font-size:.8rem;margin:0 0 .25rem;color:#55606b}
.answer p,.prompt{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;font:13px/1.45 monospace}
.prompt{background:#f4f6f8;padding:.5rem .75rem;margin:1.25rem 0 .5rem}
mark{background:#fde3cf;color:inherit}
"""

COMPARED = (TOP1_AGREEMENT, PERPLEXITY_CHANGE, KL_P99)


def pilot_figure(pilot: Pilot) -> go.Figure:
    """The predicted frontier as a line, and a dot with its interval for each measured point."""
    figure = go.Figure()
    lossy = [(nbytes, kl) for nbytes, kl in pilot.curve if kl > LEAST_KL]
    figure.add_scatter(
        x=percent([nbytes / pilot.bytes_total for nbytes, _ in lossy]),
        y=[kl for _, kl in lossy],
        mode="lines",
        name="predicted, tuned",
        line={"color": TUNED, "width": 2},
        hovertemplate="%{x:.1f} % of original<br>predicted KL %{y:.3g} nats a token<extra></extra>",
    )
    for role, colour in COLOURS.items():
        dots = [Dot(each.label, each.measured) for each in pilot.points if each.role == role]
        if dots:
            add_dots(figure, dots, pilot.bytes_total, f"measured, {CHOSEN_AS[role]}", colour)
    ends = [lossy[0][0], lossy[-1][0]] if lossy else []
    figure.add_scatter(
        x=percent([nbytes / pilot.bytes_total for nbytes in ends]),
        y=[SAFE_KL] * len(ends),
        mode="lines",
        name="safe below",
        line={"color": "#55606b", "dash": "dot"},
        hoverinfo="skip",
    )
    figure.update_xaxes(title_text="size, share of original", gridcolor="#e6eaee", **PERCENT)
    figure.update_yaxes(
        title_text=KL.label, gridcolor="#e6eaee", automargin=True, **kl_axis(figure)
    )
    return finish(figure, "Size against KL", height=440)


def pilot_html(pilot: Pilot) -> str:
    """The answer, the points, what they wrote, risks with fallbacks, tokens that changed most, and
    the recipes to take along."""
    name = visible(pilot.name)
    page = Page(f"{name}: a pilot", f"{name}: how small it can get", STYLE)
    page.paragraph(f"{pilot.sentence[0].upper()}{pilot.sentence[1:]}.", "lead")
    page.html(_points(pilot))
    page.paragraph(
        f"Original: {bytes_text(pilot.bytes_total)}. Without loss: about "
        f"{bytes_text(pilot.lossless_bytes)}, predicted. Safe: a KL of {SAFE_KL:g} nats a token at "
        "most, up to the end of its interval of 95 %; a KL of 0.01 makes the perplexity about 1 % "
        "higher."
    )
    page.figure(pilot_figure(pilot))
    page.heading("What may go wrong, and what to do then")
    page.table(["risk", "fallback"], [(each.what, each.fallback) for each in pilot.risks], "words")
    page.heading("What they write")
    page.paragraph(
        "Each goes on with the same words, always with its likeliest token. Marked: from where on "
        "it differs from the original. Different words need not be worse."
    )
    for number, asked in enumerate(pilot.prompts):
        page.html(_answers(pilot, number, asked))
    page.heading("Tokens that changed most")
    for point in pilot.points:
        with page.fold(point.label):
            worst_tokens(page, point.measured.quality)
    page.heading("How this was measured")
    page.paragraph(f"{pilot.reason} ({pilot.verdict})")
    page.paragraph(
        f"The texts: {pilot.texts}; {count_text(pilot.tokens)} tokens were calibrated on, "
        f"{count_text(pilot.proved)} measured on."
    )
    page.paragraph(
        "Each size is the smallest file whose predicted KL keeps to its aim; what the sizes before "
        "were measured to cost, over what was predicted, corrects what is asked of the next."
    )
    page.heading("The recipes")
    page.paragraph(
        f"Save one, and pack with it: ders compress CHECKPOINT OUT --recipe FILE. They need the "
        f"calibration {pilot.calibration}."
    )
    for point in pilot.points:
        page.html(_download(point))
        page.folded(f"{point.label}: the recipe", point.recipe)
    return page.text()


def _points(pilot: Pilot) -> str:
    columns = [
        *("size", "of original", "aim, KL", "predicted KL", "KL, nats a token (95 %)"),
        *("measured safe", "same top token", "change of the perplexity", "KL, 99 % of tokens"),
    ]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    rows = "".join(map(partial(_row, pilot), pilot.points, zip(*_figures(pilot), strict=True)))
    return (
        f"<div class='sheet'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        "</div>"
    )


def _figures(pilot: Pilot) -> list[list[str]]:
    """Columns: the predicted KL, and what was compared."""
    points = pilot.points
    return [
        column(KL, [point.predicted_kl for point in points]),
        *(
            column(figure, [getattr(point.measured.quality, figure.key) for point in points])
            for figure in COMPARED
        ),
    ]


def _row(pilot: Pilot, point: Point, figures: Sequence[str]) -> str:
    predicted, *compared = figures
    cells = [
        point.label,
        f"{100 * point.measured.nbytes / pilot.bytes_total:.1f} %",
        f"≤ {number_text(point.aim, 2)}",
        predicted,
        kl_text(point.measured.quality.to_dict()),
        "yes" if point.is_safe else "no",
        *compared,
    ]
    kind = " class='best'" if point == pilot.recommended else ""
    return f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _answers(pilot: Pilot, number: int, asked: Asked) -> str:
    boxes = [_box("the original", escape(_lines(asked.original)))]
    boxes += [
        _box(point.label, _marked(point.answers[number], asked.original))
        for point in pilot.points
        if number < len(point.answers)
    ]
    if asked.came:
        boxes.append(_box("the text itself", escape(_lines(asked.came))))
    return (
        f"<p class='prompt'>{escape(_lines(asked.prompt))}</p>"
        f"<div class='answers'>{''.join(boxes)}</div>"
    )


def _box(title: str, answer: str) -> str:
    """answer: as HTML."""
    return f"<div class='answer'><h3>{escape(title)}</h3><p>{answer}</p></div>"


def _marked(answer: str, original: str) -> str:
    """As HTML, marked from the first character on that differs."""
    shown, other = _lines(answer), _lines(original)
    pairs = enumerate(zip(shown, other, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(shown), len(other)))
    rest = f"<mark>{escape(shown[same:])}</mark>" if shown[same:] else ""
    return escape(shown[:same]) + rest


def _lines(text: str) -> str:
    """As `visible`, but lines stay lines."""
    return "\n".join(map(visible, text.split("\n")))


def _download(point: Point) -> str:
    content = b64encode(point.recipe.encode()).decode()
    file = f"{point.role}-{point.measured.nbytes}.yaml"
    return (
        f"<p><a download='{file}' href='data:application/yaml;base64,{content}'>"
        f"{escape(point.label)}: {file}</a></p>"
    )
