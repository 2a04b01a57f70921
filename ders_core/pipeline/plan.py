"""A plan: what a recipe will do to one checkpoint, one line per group, with exact bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.codecs.group import GroupCodec, packed_parts
from ders_core.compute.progress import Advance, uncounted
from ders_core.errors import CheckpointError, RecipeError
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import METADATA, file_bytes, file_order, shards
from ders_core.pipeline.calibration import Calibration
from ders_core.recipe import Recipe
from ders_core.recipe.numbers import parse_numbers, spell_numbers


@dataclass(frozen=True)
class PlanEntry:
    """What happens to one group; bytes are those of its tensors, before and after."""

    layer: int
    projection: str
    codec: GroupCodec
    shape: tuple[int, int, int]
    bytes_before: int
    bytes_after: int
    exact: bool
    """False where bytes_after is an upper bound, because it depends on the data."""
    packed: bool
    """False where the experts stay in the file under their original names."""

    @property
    def key(self) -> tuple[int, str]:
        """Layer and projection."""
        return self.layer, self.projection


@dataclass(frozen=True)
class Plan:
    """bytes_before and bytes_after are bytes of weight files, headers included."""

    recipe: Recipe
    entries: tuple[PlanEntry, ...]
    bytes_before: int
    bytes_after: int

    @property
    def ratio(self) -> float:
        """Size after as a share of the size before."""
        return self.bytes_after / self.bytes_before

    @property
    def exact(self) -> bool:
        """Whether bytes_after is exact, and no upper bound."""
        return all(entry.exact for entry in self.entries)

    @property
    def remarks(self) -> list[str]:
        """What codecs will do otherwise than they were asked, each once."""
        remarks = (entry.codec.remark((entry.shape[1], entry.shape[2])) for entry in self.entries)
        return list(dict.fromkeys(filter(None, remarks)))

    def to_dict(self) -> dict[str, Any]:
        """As `ders plan --json` prints it."""
        groups = [
            {**asdict(entry), "codec": entry.codec.label, "shape": list(entry.shape)}
            for entry in self.entries
        ]
        return {
            "recipe": self.recipe.name,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "ratio": self.ratio,
            "exact": self.exact,
            "remarks": self.remarks,
            "groups": groups,
        }


def group_specs(group: ExpertGroup, codec: GroupCodec, bases: int | None) -> dict[str, TensorSpec]:
    """The tensors that a packed group takes. bases: how many are stacked, at most; None for one."""
    parts = packed_parts(codec, group.shape, group.dtype, bases=bases, biases=bool(group.biases))
    return {f"{group.prefix}.{part}": spec for part, spec in parts.items()}


def carried_specs(checkpoint: Checkpoint, plan: Plan) -> dict[str, TensorSpec]:
    """The tensors that stay as they are, in their order on disk."""
    packed = {
        name
        for entry in plan.entries
        if entry.packed
        for name in checkpoint.group(*entry.key, plan.recipe.extended).sources
    }
    return {
        name: checkpoint.tensors[name].spec
        for names in checkpoint.store.files.values()
        for name in names
        if name not in packed
    }


def weight_files(checkpoint: Checkpoint, plan: Plan) -> dict[str, dict[str, TensorSpec]]:
    """The weight files of the output and the tensors in each, in their order; those of an `exact`
    plan are what is written."""
    specs = carried_specs(checkpoint, plan)
    for entry in plan.entries:
        if entry.packed:
            group = checkpoint.group(*entry.key, plan.recipe.extended)
            bases = plan.recipe.base.count(group.shape[0]).most
            # the order in which parts are staged and sharded
            specs |= file_order(group_specs(group, entry.codec, bases))
    return shards(specs)


def check_files(recipe: Recipe, checkpoint: Checkpoint, step: Advance = uncounted) -> None:
    """Raise CheckpointError unless a recipe's other files can be used for the checkpoint: what its
    base reads, and its calibration. Reads headers only, unless `Calibration.check` reads more."""
    recipe.base.check_files()
    if recipe.calibration is None:
        return
    calibration = Calibration.open(recipe.calibration)
    calibration.check(checkpoint, step)
    if recipe.needs_of_calibration == "gradients" and not calibration.has_gradients:
        raise CheckpointError(
            f"{calibration.path} has no gradients, which a knob needs; run ders calibrate "
            "--gradients"
        )


def resolve(recipe: Recipe, checkpoint: Checkpoint) -> Plan:
    """Apply a recipe's rules to every group. Reads headers only.

    Raises RecipeError if a rule names a layer without experts or an expert that does not exist, if
    the base cannot serve a group, or if the recipe is extended and no shared expert is like the
    others.
    """
    _check_layers(recipe, checkpoint)
    groups = checkpoint.groups(recipe.extended)
    _check_experts(recipe, groups)
    if recipe.extended and groups == checkpoint.groups():
        raise RecipeError(
            f"the recipe is extended, but {checkpoint.path.name} has no shared expert of its "
            "experts' shape and dtype; leave `extended` out"
        )
    codecs = {group.key: recipe.group_codec(*group.key, group.shape[0]) for group in groups}
    rewritten = _rewritten(groups, codecs)
    entries = []
    for group in groups:
        codec = codecs[group.key]
        after, count = group.nbytes, recipe.base.count(group.shape[0])
        if not codec.keeps:
            recipe.base.check(group)
        packed = not codec.keeps or not rewritten.isdisjoint(group.sources)
        if packed:
            parts = group_specs(group, codec, count.most)
            after = sum(spec.nbytes for spec in parts.values())
        exact = codec.exact and (codec.keeps or count.exact)
        entries.append(
            PlanEntry(*group.key, codec, group.shape, group.nbytes, after, exact, packed)
        )
    plan = Plan(recipe, tuple(entries), checkpoint.bytes_total, 0)
    files = weight_files(checkpoint, plan)
    after = sum(file_bytes(tensors, METADATA) for tensors in files.values())
    return replace(plan, bytes_after=after)


def _rewritten(groups: list[ExpertGroup], codecs: Mapping[tuple[int, str], GroupCodec]) -> set[str]:
    """The tensors that cannot stay as they are: they hold a group that is encoded, or one that
    shares a tensor with such a group."""
    names: set[str] = set()
    waiting = [group for group in groups if not codecs[group.key].keeps]
    while waiting:
        names |= {name for group in waiting for name in group.sources}
        waiting = [
            group
            for group in groups
            if not names.isdisjoint(group.sources) and not names.issuperset(group.sources)
        ]
    return names


def _check_layers(recipe: Recipe, checkpoint: Checkpoint) -> None:
    known = set(checkpoint.moe_layers)
    for number, rule in enumerate(recipe.rules, 1):
        for layers in parse_numbers(rule.layers) or []:
            unknown = next((layer for layer in layers if layer not in known), None)
            if unknown is not None:
                raise RecipeError(
                    f"rule {number} names layer {unknown}, but the MoE layers of "
                    f"{checkpoint.path.name} are {spell_numbers(known)}"
                )


def _check_experts(recipe: Recipe, groups: list[ExpertGroup]) -> None:
    most = max((group.shape[0] for group in groups), default=0)
    for number, rule in enumerate(recipe.rules, 1):
        for experts in parse_numbers(rule.experts) or []:
            if experts.stop > most:
                raise RecipeError(
                    f"rule {number} names expert {experts.stop - 1}, but the experts are "
                    f"0-{most - 1}"
                )
