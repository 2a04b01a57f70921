"""A plan: what a recipe will do to one checkpoint, one line per group, with exact bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from ders_core.checkpoint import Checkpoint, ExpertGroup, MatrixStack
from ders_core.checkpoint.others import Kind, OtherTensor
from ders_core.codecs import Codec, Keep
from ders_core.codecs.group import BaseForm, GroupCodec, Lengths, packed_parts, variable_parts
from ders_core.errors import CheckpointError, RecipeError
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import Specs, file_order
from ders_core.pipeline.arrangement import Arrangement
from ders_core.pipeline.selectors import check_experts, check_layers, check_others
from ders_core.recipe import Recipe

PIECE = 1 << 22
"""Values of a tensor outside the experts that are encoded as one matrix, about: threads share the
pieces out."""

WHOLE = 1 << 26
"""The same, where a codec does not act on rows."""

HELD_AT_A_LOSS = (
    "deltas hold the error of the coded bases, and their codecs make it larger; with {} all "
    "experts share it"
)
"""Of a recipe whose word for `base_error` costs more than the other one."""

Key = tuple[int, str] | str
"""Of what is encoded as one: layer and projection of a group, or the name of another tensor."""


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
    dtype: Dtype
    base: BaseForm | None
    """How bases lie in the file, with the most that there can be; None without a base."""

    @property
    def key(self) -> tuple[int, str]:
        """Layer and projection."""
        return self.layer, self.projection

    @property
    def can_be_sampled(self) -> bool:
        """Whether all its codecs act on rows, so that some of them tell of all."""
        by_rows = all(codec.acts_by_rows for codec in self.codec.codecs)
        return by_rows and (self.base is None or self.base.codec.acts_by_rows)

    @property
    def settled(self) -> bool:
        """Whether no codec, of deltas or bases, has a parameter that depends on all of them."""
        return self.codec.settled and (self.base is None or self.base.codec.settled)


@dataclass(frozen=True)
class OtherEntry:
    """What happens to a tensor outside the experts that is coded; as `PlanEntry`."""

    name: str
    kind: Kind
    codec: Codec
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    exact: bool
    matrix: tuple[int, int]
    """(out, in) of each matrix that it is cut into."""

    @property
    def key(self) -> str:
        """The tensor's name."""
        return self.name


@dataclass(frozen=True)
class Plan:
    """bytes_before and bytes_after are bytes of weight files, headers included."""

    recipe: Recipe
    entries: tuple[PlanEntry, ...]
    bytes_before: int
    bytes_after: int
    others: tuple[OtherEntry, ...] = ()
    """The tensors outside the experts that are coded, in the order of the files."""

    @property
    def keys(self) -> list[Key]:
        """All that is coded or moved, in the order in which it is written."""
        groups: list[Key] = [entry.key for entry in self.entries if entry.packed]
        return groups + [entry.key for entry in self.others]

    def entry(self, key: Key) -> PlanEntry | OtherEntry:
        """What happens to a group or another tensor."""
        return self._by_key[key]

    def other(self, name: str) -> OtherEntry | None:
        """What happens to a tensor outside the experts; None if it stays."""
        entry = self._by_key.get(name)
        return entry if isinstance(entry, OtherEntry) else None

    @cached_property
    def _by_key(self) -> dict[Key, PlanEntry | OtherEntry]:
        by_key: dict[Key, PlanEntry | OtherEntry] = {entry.key: entry for entry in self.entries}
        return by_key | {other.key: other for other in self.others}

    @property
    def ratio(self) -> float:
        """Size after as a share of the size before."""
        return self.bytes_after / self.bytes_before

    @property
    def exact(self) -> bool:
        """Whether bytes_after is exact, and no upper bound."""
        exact = [entry.exact for entry in self.entries]
        return all(exact) and all(other.exact for other in self.others)

    @property
    def loses(self) -> bool:
        """Whether what is coded may come back otherwise."""
        codecs = [codec for entry in self.entries for codec in entry.codec.codecs]
        codecs += [other.codec for other in self.others]
        return not all(codec.lossless for codec in codecs)

    @property
    def remarks(self) -> list[str]:
        """What codecs will do otherwise than they were asked, each once."""
        remarks = [entry.codec.remark((entry.shape[1], entry.shape[2])) for entry in self.entries]
        for entry in self.entries:
            if entry.base is not None and not entry.codec.keeps:
                remarks.append(entry.base.codec.remark((entry.shape[1], entry.shape[2])))
        for other in self.others:
            remarks.append(other.codec.remark(other.matrix))
        if self.recipe.suits_shared_error and not self.recipe.shares_base_error:
            is_said = self.recipe.base_error is not None
            ways = "`base_error: shared`" if is_said else "`base_error: shared` or `version: 2`"
            remarks.append(HELD_AT_A_LOSS.format(ways))
        return list(dict.fromkeys(filter(None, remarks)))

    def to_dict(self) -> dict[str, Any]:
        """As `ders plan --json` prints it."""
        groups = [
            {
                **asdict(entry),
                "codec": entry.codec.label,
                "shape": list(entry.shape),
                "dtype": entry.dtype.name,
                "base": _base_label(entry),
            }
            for entry in self.entries
        ]
        others = [
            {**asdict(other), "codec": other.codec.label, "shape": list(other.shape)}
            for other in self.others
        ]
        return {
            "recipe": self.recipe.name,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "ratio": self.ratio,
            "exact": self.exact,
            "remarks": self.remarks,
            "groups": groups,
            "others": others,
        }


def _base_label(entry: PlanEntry) -> str:
    """How the bases are stored, in a few words."""
    if entry.codec.keeps or entry.base is None:
        return "none"
    return entry.base.codec.label


def specs_of(checkpoint: Checkpoint, plan: Plan, key: Key) -> dict[str, TensorSpec]:
    """The tensors that something of the plan takes, by their full names; at most, unless it is
    exact."""
    stack = stack_of(checkpoint, plan.recipe, key)
    return stack_specs(stack, *_forms(stack, plan.entry(key)))


def _forms(stack: MatrixStack, entry: PlanEntry | OtherEntry) -> tuple[GroupCodec, BaseForm | None]:
    """The codec of matrices, and how bases lie in the file."""
    if isinstance(entry, PlanEntry):
        return entry.codec, entry.base
    return GroupCodec.same(entry.codec, stack.shape[0]), None


def stack_of(checkpoint: Checkpoint, recipe: Recipe, key: Key) -> MatrixStack:
    """What a recipe encodes as one: a group, or another tensor cut into matrices."""
    stack = checkpoint.stack(key, recipe.extended)
    if isinstance(stack, OtherTensor):
        return _cut(stack, recipe.codec_of_tensor(stack))
    return stack


def _cut(tensor: OtherTensor, codec: Codec) -> OtherTensor:
    """In as many pieces as suit threads and memory, where the codec acts on rows."""
    return tensor.cut(PIECE if codec.acts_by_rows else WHOLE)


def stack_specs(
    stack: MatrixStack, codec: GroupCodec, base: BaseForm | None, lengths: Lengths | None = None
) -> dict[str, TensorSpec]:
    """The tensors that a packed stack takes. lengths: as of `packed_parts`."""
    biases = bool(stack.added)
    parts = packed_parts(codec, stack.shape, stack.dtype, base=base, biases=biases, lengths=lengths)
    return {f"{stack.prefix}.{part}": spec for part, spec in parts.items()}


def carried_specs(checkpoint: Checkpoint, plan: Plan) -> dict[str, TensorSpec]:
    """The tensors that stay as they are, in their order on disk."""
    packed = {
        name for key in plan.keys for name in checkpoint.stack(key, plan.recipe.extended).sources
    }
    return {
        name: checkpoint.tensors[name].spec
        for names in checkpoint.store.files.values()
        for name in names
        if name not in packed
    }


def arrangement(checkpoint: Checkpoint, plan: Plan) -> Arrangement[Key]:
    """Which tensor goes where in the weight files of the output. Raises CheckpointError if two
    tensors would have one name."""
    fixed, variable = carried_specs(checkpoint, plan), dict[Key, Specs]()
    names = set(fixed)
    for key in plan.keys:
        specs = file_order(specs_of(checkpoint, plan, key))  # the order in which files are filled
        double = next((name for name in specs if name in names), None)
        if double is not None:
            raise CheckpointError(
                f"{checkpoint.path} has a tensor {double!r}, whose name a part of the packed form "
                "needs; rename it"
            )
        names |= specs.keys()
        loose = _variable_names(checkpoint, plan, key)
        fixed |= {name: spec for name, spec in specs.items() if name not in loose}
        if loose:
            variable[key] = {name: specs[name] for name in loose}
    return Arrangement(fixed, variable)


def _variable_names(checkpoint: Checkpoint, plan: Plan, key: Key) -> set[str]:
    """The tensors of `specs_of` that may turn out smaller, or not to be there."""
    entry = plan.entry(key)
    if entry.exact:
        return set()
    stack = stack_of(checkpoint, plan.recipe, key)
    codec, base = _forms(stack, entry)
    kind = plan.recipe.base
    is_sure = kind.count(stack.shape[0]).exact and not kind.is_optional
    parts = variable_parts(codec, stack.shape, stack.dtype, base=base, is_sure=is_sure)
    return {f"{stack.prefix}.{part}" for part in parts}


def resolve(recipe: Recipe, checkpoint: Checkpoint) -> Plan:
    """Apply a recipe's rules to every group. Reads headers only.

    Raises RecipeError if a rule names a layer without experts or an expert that does not exist, if
    the base cannot serve a group, or if the recipe is extended and no shared expert is like the
    others.
    """
    if recipe.budget is not None:
        raise RecipeError(
            "the recipe has a budget, which must become rules first; ders plan --settle FILE "
            "writes a recipe that has them"
        )
    check_layers(recipe, checkpoint)
    groups = checkpoint.groups(recipe.extended)
    check_experts(recipe, groups)
    if recipe.extended and groups == checkpoint.groups():
        raise RecipeError(
            f"the recipe is extended, but {checkpoint.path.name} has no shared expert of its "
            "experts' shape and dtype; leave `extended` out"
        )
    codecs = {group.key: recipe.group_codec(*group.key, group.shape[0]) for group in groups}
    rewritten = _rewritten(groups, codecs)
    entries = tuple(
        _group_entry(recipe, group, codecs[group.key], not rewritten.isdisjoint(group.sources))
        for group in groups
    )
    packed = {entry.key for entry in entries if entry.packed}
    others = _other_entries(recipe, checkpoint, [group for group in groups if group.key in packed])
    plan = Plan(recipe, entries, checkpoint.bytes_total, 0, others)
    return replace(plan, bytes_after=output_bytes(checkpoint, plan))


def output_bytes(
    checkpoint: Checkpoint, plan: Plan, foretold: Mapping[Key, Specs] | None = None
) -> int:
    """Of all weight files, headers included; at most, unless the plan is `exact`. foretold: the
    tensors of what has other ones than `specs_of` says; with it, the bytes of these. Raises
    CheckpointError as `arrangement` does."""
    arranged = arrangement(checkpoint, plan)
    return arranged.most_bytes() if foretold is None else arranged.nbytes(foretold)


def _group_entry(
    recipe: Recipe, group: ExpertGroup, codec: GroupCodec, is_rewritten: bool
) -> PlanEntry:
    after, count = group.nbytes, recipe.base.count(group.shape[0])
    base = base_form(recipe, group)
    if not codec.keeps:
        recipe.base.check(group)
    packed = not codec.keeps or is_rewritten
    if packed:
        after = sum(spec.nbytes for spec in stack_specs(group, codec, base).values())
    is_known = count.exact and not recipe.base.is_optional
    exact = codec.exact and (codec.keeps or (is_known and (base is None or base.exact)))
    return PlanEntry(
        *group.key, codec, group.shape, group.nbytes, after, exact, packed, group.dtype, base
    )


def base_form(recipe: Recipe, group: ExpertGroup) -> BaseForm | None:
    """How a recipe stores the bases of a group, the most that there can be; None without any."""
    if not recipe.base.is_stored:
        return None
    most = recipe.base.count(group.shape[0]).most
    return BaseForm(most, recipe.codec_of_base(*group.key))


def _other_entries(
    recipe: Recipe, checkpoint: Checkpoint, packed: list[ExpertGroup]
) -> tuple[OtherEntry, ...]:
    """packed: the groups that take tensors, an always-on expert's among them."""
    if not recipe.others:
        return ()
    check_others(recipe, checkpoint)
    inside = {name for group in packed for name in group.sources}
    entries = []
    for other in checkpoint.others.values():
        codec = recipe.codec_of_tensor(other)
        if isinstance(codec, Keep) or other.name in inside:
            continue
        stack = _cut(other, codec)
        pieces, *matrix = stack.shape
        specs = stack_specs(stack, GroupCodec.same(codec, pieces), None)
        entries.append(
            OtherEntry(
                other.name,
                other.kind,
                codec,
                other.info.shape,
                other.nbytes,
                sum(spec.nbytes for spec in specs.values()),
                codec.exact,
                (matrix[0], matrix[1]),
            )
        )
    return tuple(entries)


def _rewritten(groups: list[ExpertGroup], codecs: Mapping[tuple[int, str], GroupCodec]) -> set[str]:
    """The tensors that cannot stay as they are: they hold a group that is encoded, or one that
    shares a tensor with such a group. Empty if every group is encoded."""
    names: set[str] = set()
    if not any(codec.keeps for codec in codecs.values()):
        return names
    waiting = [group for group in groups if not codecs[group.key].keeps]
    while waiting:
        names |= {name for group in waiting for name in group.sources}
        waiting = [
            group
            for group in groups
            if not names.isdisjoint(group.sources) and not names.issuperset(group.sources)
        ]
    return names
