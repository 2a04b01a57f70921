"""A bar of a checkpoint's bytes: what is base, repetition and other, and what of it a recipe
leaves."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.pipeline.plan import Plan
from ders_core.ui.beside_table import base_bytes, with_bases
from ders_core.ui.plain import strong
from ders_core.units import bytes_text, share_text

REST = "attention, embeddings, routers, shared experts"
STYLE = """<style>
.ders{--base:#0072b2;--repeated:#e69f00;--other:#8a949e}
.ders .bar{display:flex;height:22px;border-radius:4px;overflow:hidden;gap:2px}
.ders .goes{opacity:.25}
.ders .legend{display:flex;flex-wrap:wrap;gap:4px 24px;margin-top:8px;font-size:.9rem}
.ders i{display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:.4em}
.ders small{opacity:.65}
</style>"""


@dataclass(frozen=True)
class Part:
    """Of the original's bytes: name, the colour's name, and a hint. share: of all bytes, 0 to 1;
    stays: of all bytes, what a recipe leaves of it."""

    name: str
    hint: str
    share: float
    stays: float


def parts(source: Checkpoint, plan: Plan | None) -> list[Part]:
    """One expert's worth in each layer, the others, and the rest. plan: what a recipe does; without
    one everything stays. Where bytes depend on the data, `stays` is an upper bound, but never more
    than there is."""
    base = source.expert_share / source.num_experts
    shares = {"base": base, "repeated": source.expert_share - base}
    shares["other"] = 1 - source.expert_share
    stays = shares if plan is None else _left(source, plan, shares)
    hints = {"base": "one expert's worth in each layer", "repeated": "the other experts"}
    return [
        Part(name, hints.get(name, REST), share, min(stays[name], share))
        for name, share in shares.items()
    ]


def _left(source: Checkpoint, plan: Plan, shares: dict[str, float]) -> dict[str, float]:
    """Of the original's bytes, what a plan leaves of each part. Of bases, what is more than one
    expert's worth counts as repeated."""
    total = source.bytes_total
    bases = sum(base_bytes(entry)[1] for entry in with_bases(plan))
    kept = sum(entry.bytes_after // entry.shape[0] for entry in plan.entries if entry.codec.keeps)
    experts = sum(entry.bytes_after for entry in plan.entries) / total
    saved = sum(other.bytes_before - other.bytes_after for other in plan.others)
    base = min((bases + kept) / total, shares["base"])
    return {"base": base, "repeated": experts - base, "other": shares["other"] - saved / total}


def composition(source: Checkpoint, plan: Plan | None) -> None:
    """The bar with its legend, and a sentence on what the recipe leaves."""
    shown = parts(source, plan)
    bars = "".join(
        f'<div class="{kind}" style="flex:{share:.5f};background:var(--{part.name})" '
        f'title="{part.name}: {part.hint}"></div>'
        for part in shown
        for kind, share in (("stays", part.stays), ("goes", part.share - part.stays))
        if share > 0.0005
    )
    legend = "".join(
        f'<span><i style="background:var(--{part.name})"></i>{part.name} {_share(part)}'
        f"<small> {part.hint}</small></span>"
        for part in shown
    )
    st.html(
        f'{STYLE}<div class="ders"><div class="bar" role="img" aria-label="composition">{bars}'
        f'</div><div class="legend">{legend}</div></div>'
    )
    if plan is not None and any(part.stays < part.share for part in shown):
        bound = "" if plan.exact else "at most "
        st.caption(
            f"Faint: what goes with the recipe {strong(plan.recipe.name)}, which leaves {bound}"
            f"{bytes_text(plan.bytes_after)}, {share_text(plan.ratio)} of original."
        )


def _share(part: Part) -> str:
    """What there is, and what stays if that is less. All shares of the legend have one decimal."""
    before, after = (f"{100 * share:.1f} %" for share in (part.share, part.stays))
    return before if after == before else f"{before} → {after}"
