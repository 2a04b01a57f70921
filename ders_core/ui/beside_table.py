"""The Recipe page's table of what lies beside the deltas: bases, and other tensors by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ders_core.checkpoint import KINDS, Checkpoint
from ders_core.checkpoint.others import Kind
from ders_core.codecs import Codec, Keep
from ders_core.codecs.group import GroupCodec
from ders_core.later import pd
from ders_core.pipeline.plan import Plan, PlanEntry
from ders_core.recipe import OtherRule, Recipe
from ders_core.ui.recipe_table import OTHER, choice_of, codec_from, strength_of

BASES = "bases"
"""The row of what experts have in common."""

LABELS: Mapping[Kind, str] = {
    "attention": "attention",
    "ffn": "dense FFNs",
    "shared": "shared experts",
    "embedding": "embeddings",
    "head": "output head",
    "router": "routers",
    "norm": "norms",
    "vector": "vectors",
    "other": "others",
}
"""What people read for each kind of tensor."""


def table(plan: Plan, source: Checkpoint) -> pd.DataFrame:
    """what, codec, strength, before and after in MB, share of original in %: a row for the bases,
    if there are any, and one for each kind of tensor outside the experts.

    What bases take is new: before, it is what one expert takes.
    """
    rows = []
    if bases := with_bases(plan):
        codec = _same([entry.base.codec for entry in bases if entry.base is not None])
        before, after = (sum(sizes) for sizes in zip(*map(base_bytes, bases), strict=True))
        rows.append(_row(BASES, codec, before, after))
    for kind in kinds_of(source):
        tensors = [tensor for tensor in source.others.values() if tensor.kind == kind]
        entries = [plan.other(tensor.name) for tensor in tensors]
        before = sum(tensor.nbytes for tensor in tensors)
        saved = sum(entry.bytes_before - entry.bytes_after for entry in entries if entry)
        codec = _same([entry.codec if entry else Keep() for entry in entries])
        rows.append(_row(LABELS[kind], codec, before, before - saved))
    return pd.DataFrame(rows)


def kinds_of(source: Checkpoint) -> list[Kind]:
    """The kinds of tensors outside the experts that a model has, in the order of rows."""
    present = {tensor.kind for tensor in source.others.values()}
    return [kind for kind in KINDS if kind in present]


def apply_edits(
    recipe: Recipe, shown: pd.DataFrame, edits: Mapping[int, Mapping[str, Any]]
) -> Recipe:
    """The recipe after edits of the table, which are row -> {column: value}: a rule for each row
    that was edited. Raises CodecError, RecipeError."""
    by_label = {label: kind for kind, label in LABELS.items()}
    for number, changed in edits.items():
        row = shown.iloc[number]
        codec = _chosen(row, changed)
        if codec is None:
            continue
        if row["what"] == BASES:
            recipe = _with_base_codec(recipe, codec)
        else:
            recipe = _with_kind(recipe, by_label[row["what"]], codec)
    return recipe


def _with_base_codec(recipe: Recipe, codec: Codec) -> Recipe:
    """Codecs decide who has the error of coded bases, unless the recipe says it."""
    coded = () if isinstance(codec, Keep) else (codec.dump(),)
    return recipe.changed(version=2 if coded or recipe.budget else 1, base_codec=coded)


def _with_kind(recipe: Recipe, kind: Kind, codec: Codec) -> Recipe:
    """The recipe with this codec for all tensors of a kind."""
    alone = OtherRule(kinds=(kind,), codec=codec)
    rest = tuple(rule for rule in recipe.others if not rule.is_of_kind(kind))
    keeps = isinstance(codec, Keep) and not any(rule.may_select(kind) for rule in rest)
    return recipe.changed(others=rest if keeps else (*rest, alone))


def _chosen(row: pd.Series, changed: Mapping[str, Any]) -> Codec | None:
    """The codec of an edited row; None where it was written in YAML and stays."""
    label = str(changed.get("codec", row["codec"]))
    if label == OTHER:
        return None
    before = GroupCodec.same(row["before_codec"] or Keep(), 1)
    strength = changed.get("strength", row["strength"] if label == row["codec"] else None)
    return codec_from(label, strength, before).codecs[0]


def _row(what: str, codec: Codec | None, before: int, after: int) -> dict[str, Any]:
    """codec: None where there are several."""
    group = GroupCodec.same(codec, 1) if codec is not None else None
    return {
        "what": what,
        "codec": OTHER if group is None else choice_of(group),
        "strength": None if group is None else strength_of(group),
        "before": before / 1e6,
        "after": after / 1e6,
        "share": 100 * after / before if before else 0.0,
        "before_codec": codec,
    }


def _same(codecs: Sequence[Codec]) -> Codec | None:
    """The codec of all; None where they differ."""
    return codecs[0] if len(set(codecs)) == 1 else None


def with_bases(plan: Plan) -> list[PlanEntry]:
    """The groups whose bases are stored."""
    return [entry for entry in plan.entries if entry.base is not None and not entry.codec.keeps]


def base_bytes(entry: PlanEntry) -> tuple[int, int]:
    """Of a group's bases as they are, and as they are stored; at most."""
    assert entry.base is not None
    shape = (entry.shape[1], entry.shape[2])
    one = entry.bytes_before // entry.shape[0]
    coded = sum(spec.nbytes for spec in entry.base.specs(shape, entry.dtype).values())
    return one * (entry.base.count or 1), coded
