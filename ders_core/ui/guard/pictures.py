"""A plot's picture as SVG, from a button below it.

Plotly's own button above a plot saves pictures of one kind, which is PNG here. This one lets it
save one of the other kind.
"""

from __future__ import annotations

from html import escape

MARK = "data-plot-picture"
"""The attribute of a button that names the key of a plot."""

ARROW = (
    "url('data:image/svg+xml,<svg xmlns=%22http://www.w3.org/2000/svg%22 viewBox=%220 0 24 24%22>"
    "<path d=%22M12 16 7 11l1.4-1.45 2.6 2.6V4h2v8.15l2.6-2.6L17 11zM6 20a2 2 0 0 1-2-2v-3h2v3h12"
    "v-3h2v3a2 2 0 0 1-2 2z%22/></svg>')"
)
"""As Streamlit's buttons for downloads have it. Streamlit keeps no drawing in HTML."""

STYLE = f"""<style>
[{MARK}] {{
  all: unset; cursor: pointer; min-height: 2.5rem; font-size: 0.875rem;
  display: inline-flex; align-items: center; gap: 0.5rem;
}}
[{MARK}]:hover {{ color: var(--st-primary-color, #2f8fbd); }}
[{MARK}]::before {{
  content: ""; width: 1rem; height: 1rem; background: currentColor; mask: {ARROW};
}}
[{MARK}]:focus-visible {{ outline: 2px solid currentColor; outline-offset: 2px; }}
</style>"""

SCRIPT = f"""addEventListener("click", (event) => {{
    const key = event.target.closest?.("[{MARK}]")?.getAttribute("{MARK}");
    if (!key) return;
    const plot = document.querySelector(`.st-key-${{CSS.escape(key)}} .js-plotly-plot`);
    const camera = plot?.querySelector('.modebar-btn[data-title$="PNG"]');
    if (!camera) return;
    const options = plot._context.toImageButtonOptions;
    plot._context.toImageButtonOptions = {{...options, format: "svg"}};
    camera.click();
    plot._context.toImageButtonOptions = options;
}});"""
"""Plotly reads the options while it is clicked."""


def button(key: str) -> str:
    """HTML of the button for the plot of a key."""
    return (
        f'<button type="button" {MARK}="{escape(key)}" '
        'title="The picture of this plot. PNG: the camera above it.">SVG</button>'
    )
