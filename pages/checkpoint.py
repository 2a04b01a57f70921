"""Checkpoint: open one, and see on the first screen whether it can shrink."""

from typing import Literal

import streamlit as st

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.checkpoint.layouts import LAYOUT_FILE
from ders_core.errors import DersError
from ders_core.files.tensor import TensorReader
from ders_core.later import pd
from ders_core.pipeline.plan import Plan
from ders_core.recipe import presets
from ders_core.ui import frame, kept, reads, session
from ders_core.ui.composition import composition
from ders_core.ui.demo import expect_demo
from ders_core.ui.number_columns import number_column
from ders_core.ui.plain import plain, show_error
from ders_core.units import bytes_text, listed, share_text, visible

CODED_BASE = 8  # bits of a base whose errors are small beside those of two bits in the deltas


def open_row() -> None:
    """A box for a path, with recent ones first, and a button for the demo."""
    roots = tuple(str(root) for root in session.workspace().roots)
    recent = [path for path in session.current().recent if path.isprintable()]
    known = [path for path in reads.model_directories(roots) if path not in recent]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen: str | None = kept.field(
            st.selectbox,
            "Model directory",
            key="open_path",
            start=None,
            options=[*recent, *known],
            index=None,
            accept_new_options=True,
            placeholder="Type or choose a path, or hf://owner/repo",
            help="A directory with config.json and safetensors files: a local path below "
            + plain(", ".join(roots))
            + "; or an address below "
            + plain(", ".join(session.workspace().addresses)),
        )
        kind: Literal["primary", "secondary"] = (
            "primary" if session.current().checkpoint is None else "secondary"
        )
        opened = st.button("Open", type=kind, disabled=not chosen, key="open")
        demo = st.button("Try the demo", key="demo", icon=":material/science:")
    if opened and chosen:
        try:
            reads.checkpoint(chosen)
            session.open_path(chosen)
        except DersError as error:
            show_error(error)
        else:
            st.rerun()
    if demo and frame.open_demo():
        st.switch_page("pages/redundancy.py")


def current_plan(source: Checkpoint) -> Plan | None:
    """What the current recipe does; None if it has a budget or does not fit."""
    recipe = session.recipe()
    try:
        return None if recipe.budget is not None else reads.plan(source, recipe)
    except DersError:
        return None


def can_go(source: Checkpoint) -> str:
    """What two bits leave away, and what a coded base adds to that."""
    two_bits = presets()["quantized-2bit"]
    coded = two_bits.changed(base_codec=({"codec": "quantized", "bits": CODED_BASE},))
    plans = [reads.plan(source, recipe) for recipe in (two_bits, coded)]
    saved, more = (bytes_text(plan.bytes_before - plan.bytes_after) for plan in plans)
    return (
        f"About **{saved} of {bytes_text(plans[0].bytes_before)}** can go at 2 bits, {more} with "
        f"a base of {CODED_BASE} bits too; a run measures what that costs."
    )


def first_screen(source: Checkpoint) -> None:
    """The answer: how alike the experts are, and how many bytes can go."""
    analysis = reads.analysis(source)
    summary = reads.summary(source, None if analysis is None else analysis.verdict)
    verdict = summary.upcycled
    seen = (
        " (From a sample of rows; the analysis compares all of them.)" if analysis is None else ""
    )
    st.markdown(f"## {plain(frame.label(source))}")
    st.markdown(
        f"**{summary.experts} experts × {summary.moe_layers} layers{summary.routing}.** "
        f"{verdict.sentence if verdict else ''}{seen}"
    )
    if summary.packed:
        st.markdown(
            f"Packed: {summary.packed}. In memory: {summary.in_memory}. The page shows the "
            "original that it stands for."
        )
    composition(source, current_plan(source))
    if summary.left_aside:
        st.caption(f"No part of the model, and left aside: {plain(listed(summary.left_aside))}")
    if summary.linked_out:
        names = plain(listed(summary.linked_out))
        st.caption(f"Links to files outside of the checkpoint, and left out: {names}")
    if summary.sure < 1:
        st.info(
            f"No entry names this model; its experts were recognised by the tensors, "
            f"{100 * summary.sure:.0f} % sure: {plain(summary.because)}. If that is wrong, put a "
            f"`{LAYOUT_FILE}` next to its config.json (see the README's Layouts)."
        )
    cells = st.container(horizontal=True, gap="large")  # long values are not clipped
    cells.metric(
        "Family",
        plain(summary.family, 80),
        help=f"{100 * summary.sure:.0f} % sure: {plain(summary.because)}.",
        width="content",
    )
    cells.metric(
        "Layers",
        f"{summary.moe_layers} of {summary.layers}",
        help="Layers with experts, of all layers.",
        width="content",
    )
    stored = (
        f" On disk they are {plain(summary.stored)} codes and scales." if summary.stored else ""
    )
    cells.metric(
        "Dtype", summary.dtype, help=f"How most experts' weights are read.{stored}", width="content"
    )
    cells.metric(
        "Weight files",
        bytes_text(summary.bytes_total),
        help="Bytes of the safetensors files. MB and GB are powers of ten.",
        width="content",
    )
    cells.metric(
        "Experts' share",
        share_text(summary.expert_share),
        help="Share of all weight bytes that the routed experts take.",
        width="content",
    )
    if verdict and verdict.verdict == "scratch":
        st.warning(
            "These experts have no common start, so DeRS does not apply as it is meant; "
            "you may still look and try."
        )
    elif summary.packed_bytes is not None:
        two_bits = reads.plan(source, presets()["quantized-2bit"])
        st.markdown(
            f"At 2 bits it would take **{bytes_text(two_bits.bytes_after)}**; "
            f"it takes {bytes_text(summary.packed_bytes)} as it is packed now."
        )
    else:
        st.markdown(can_go(source))
    next_step(is_analysed=analysis is not None)


def next_step(*, is_analysed: bool) -> None:
    """One button for what to do next, and a link to what may come after or before it."""
    steps = [("See redundancy", "pages/redundancy.py"), ("Choose a recipe", "pages/recipe.py")]
    if is_analysed:
        steps.reverse()
    (label, page), (other, other_page) = steps
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(label, type="primary", key="next_step", icon=":material/arrow_forward:"):
            st.switch_page(page)
        st.page_link(other_page, label=other)


def shared_text(groups: list[ExpertGroup], shared: list[TensorReader]) -> str:
    """Bytes of the shared expert, and whether it has the shape of the others."""
    if not shared:
        return "none"
    like = all(group.with_shared() is not group for group in groups)
    return bytes_text(sum(info.nbytes for info in shared)) + (", like the others" if like else "")


def router_text(group: ExpertGroup) -> str:
    """Its name, without that of its block."""
    name = group.router or "not found"
    return name.removeprefix(f"{group.block.name}.")


def tables(source: Checkpoint) -> None:
    """Layers with their experts; other tensors folded away."""
    rows = []
    for layer in source.moe_layers:
        groups = [group for group in source.groups() if group.layer == layer]
        shared = source.shared_expert(layer)
        rows.append(
            {
                "layer": layer,
                "experts": groups[0].shape[0],
                "shapes": ", ".join(
                    f"{group.projection} {group.shape[1]}×{group.shape[2]}" for group in groups
                ),
                "size": sum(group.nbytes for group in groups) / 1e6,
                "shared expert": shared_text(groups, shared),
                "block": visible(groups[0].block.name),
                "router": visible(router_text(groups[0])),
            }
        )
    st.markdown("## Layers with experts")
    layers = pd.DataFrame(rows)
    st.dataframe(
        layers,
        hide_index=True,
        column_config={
            "size": number_column("size, MB", layers["size"]),
            "shapes": st.column_config.TextColumn("shapes (out × in)"),
        },
    )
    others = reads.other_tensors(source)
    with st.expander(
        f"Other tensors ({len(others)}), which stay as they are unless the recipe codes them"
    ):
        st.dataframe(
            others,
            hide_index=True,
            lazy=True,  # of many, a browser gets the rows that it shows
            column_config={"size": number_column("size, MB", others["size"])},
        )


frame.need_frame()
frame.head(
    "Checkpoint",
    "Open a Mixture-of-Experts model: how alike its experts are, and how many bytes can go.",
)
open_row()
path = session.current().checkpoint
if path is None:
    expect_demo(session.workspace())
    with st.container(border=True):
        st.markdown(
            "**Which experts repeat themselves?** Open a Mixture-of-Experts checkpoint: a "
            "directory with `config.json` and safetensors files, of any family, or "
            "`hf://owner/repo`. With none at hand, *Try the demo* shows a small one that comes "
            "with the studio."
        )
else:
    try:
        opened = reads.checkpoint(path)
        first_screen(opened)
        tables(opened)
    except DersError as error:
        show_error(error)
