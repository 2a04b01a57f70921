"""Checkpoint: open one, and see on the first screen whether it can shrink."""

import streamlit as st

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.checkpoint.layouts import LAYOUT_FILE
from ders_core.errors import DersError
from ders_core.files.tensor import TensorReader
from ders_core.later import pd
from ders_core.recipe import presets
from ders_core.ui import frame, kept, reads, session
from ders_core.ui.demo import expect_demo
from ders_core.ui.plain import plain, show_error
from ders_core.units import bytes_text, listed, share_text, visible


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
        opened = st.button("Open", type="primary", disabled=not chosen, key="open")
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


REST = "attention, embeddings, routers, shared experts"


def composition(source: Checkpoint) -> None:
    """A bar of the bytes: one base, its repetitions, the rest."""
    base = source.expert_share / source.num_experts
    repeated = source.expert_share - base
    parts = [
        ("base", base, "var(--ders-base)", "one expert's worth in each layer"),
        ("repeated", repeated, "var(--ders-repeated)", "the other experts"),
        ("other", 1 - source.expert_share, "var(--ders-other)", REST),
    ]
    bars = "".join(
        f'<div style="flex:{share:.5f};background:{colour}" title="{name}: {hint}"></div>'
        for name, share, colour, hint in parts
    )
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{name} {share_text(share)}'
        f"<small> {hint}</small></span>"
        for name, share, colour, hint in parts
    )
    st.html(
        "<style>.ders{--ders-base:#0072b2;--ders-repeated:#e69f00;--ders-other:#8a949e}"
        ".ders .bar{display:flex;height:22px;border-radius:4px;overflow:hidden;gap:2px}"
        ".ders .legend{display:flex;flex-wrap:wrap;gap:4px 24px;margin-top:8px;font-size:.9rem}"
        ".ders i{display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:.4em}"
        ".ders small{opacity:.65}</style>"
        f'<div class="ders"><div class="bar" role="img" aria-label="composition">{bars}</div>'
        f'<div class="legend">{legend}</div></div>'
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
    composition(source)
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
    two_bits = reads.plan(source, presets()["quantized-2bit"])
    saved = two_bits.bytes_before - two_bits.bytes_after
    with st.container(horizontal=True, vertical_alignment="center"):
        if verdict and verdict.verdict == "scratch":
            st.warning(
                "These experts have no common start, so DeRS does not apply as it is meant; "
                "you may still look and try."
            )
        elif summary.packed_bytes is not None:
            st.markdown(
                f"At 2 bits it would take **{bytes_text(two_bits.bytes_after)}**; "
                f"it takes {bytes_text(summary.packed_bytes)} as it is packed now."
            )
        else:
            st.markdown(
                f"About **{bytes_text(saved)} of {bytes_text(two_bits.bytes_before)}** can go at "
                "2 bits; a run measures what that costs."
            )
        st.page_link("pages/redundancy.py", label="See redundancy", icon=":material/grid_on:")
        st.page_link("pages/recipe.py", label="Choose a recipe", icon=":material/tune:")


def shared_text(groups: list[ExpertGroup], shared: list[TensorReader]) -> str:
    """Bytes of the shared expert, and whether it has the shape of the others."""
    if not shared:
        return "none"
    like = all(group.with_shared() is not group for group in groups)
    return bytes_text(sum(info.nbytes for info in shared)) + (", like the others" if like else "")


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
                "router": visible(groups[0].router or "not found"),
            }
        )
    st.markdown("## Layers with experts")
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={
            "size": st.column_config.NumberColumn("size, MB", format="%.3g"),
            "shapes": st.column_config.TextColumn("shapes (out × in)"),
        },
    )
    others = reads.other_tensors(source)
    with st.expander(f"Other tensors ({len(others)}), carried over as they are"):
        st.dataframe(
            others,
            hide_index=True,
            lazy=True,  # of many, a browser gets the rows that it shows
            column_config={"size": st.column_config.NumberColumn("size, MB", format="%.3g")},
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
