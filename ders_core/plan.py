"""A plan: what a recipe will do to one checkpoint, one line per group, with exact bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ders_core.checkpoint import Checkpoint, ExpertGroup, TensorSpec
from ders_core.checkpoint.writer import file_bytes, file_order, shards
from ders_core.codecs import DeltaCodec, Keep
from ders_core.errors import RecipeError
from ders_core.recipe import Recipe, parse_layers
from ders_core.rules import spell_layers


@dataclass(frozen=True)
class PlanEntry:
    """One group: bytes are those of its tensors, before and after."""

    layer: int
    projection: str
    codec: DeltaCodec
    shape: tuple[int, int, int]
    bytes_before: int
    bytes_after: int
    exact: bool
    """False where bytes_after is an upper bound, because the data decide."""

    @property
    def key(self) -> tuple[int, str]:
        return self.layer, self.projection

    @property
    def decomposed(self) -> bool:
        return not isinstance(self.codec, Keep)


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
        return all(entry.exact for entry in self.entries)

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
            "groups": groups,
        }


def part_name(checkpoint: Checkpoint, layer: int, projection: str, part: str) -> str:
    """The name in a packed checkpoint of one part of a group, or of its `base`."""
    return f"{checkpoint.layout.block_of(layer)}.ders.{projection}.{part}"


def group_specs(
    checkpoint: Checkpoint, group: ExpertGroup, codec: DeltaCodec
) -> dict[str, TensorSpec]:
    """The tensors that a decomposed group takes: its base, and each part stacked over experts."""
    experts, out, width = group.shape
    parts = codec.parts((out, width), group.dtype)
    named = {"base": TensorSpec(group.dtype, (out, width))} | {
        part: TensorSpec(spec.dtype, (experts, *spec.shape)) for part, spec in parts.items()
    }
    return {
        part_name(checkpoint, group.layer, group.projection, part): spec
        for part, spec in named.items()
    }


def carried_specs(checkpoint: Checkpoint, plan_entries: tuple[PlanEntry, ...]) -> dict[str, Any]:
    """The tensors that stay as they are, in the order they lie on disk."""
    decomposed = {
        name
        for entry in plan_entries
        if entry.decomposed
        for name in checkpoint.group(entry.layer, entry.projection).sources
    }
    return {
        name: checkpoint.tensors[name].spec
        for names in checkpoint.store.files.values()
        for name in names
        if name not in decomposed
    }


def resolve(recipe: Recipe, checkpoint: Checkpoint) -> Plan:
    """Apply a recipe's rules to every group. Reads headers only.

    Raises RecipeError if a rule names a layer that the checkpoint has no experts in.
    """
    _check_layers(recipe, checkpoint)
    entries = []
    specs: dict[str, TensorSpec] = {}
    for group in checkpoint.groups():
        codec = recipe.codec(group.layer, group.projection)
        after = group.nbytes
        if not isinstance(codec, Keep):
            own = group_specs(checkpoint, group, codec)
            specs |= file_order(own)  # the order in which they are staged, hence sharded
            after = sum(spec.nbytes for spec in own.values())
        entries.append(PlanEntry(*group.key, codec, group.shape, group.nbytes, after, codec.exact))
    everything = carried_specs(checkpoint, tuple(entries)) | specs
    files = shards(everything)
    after = sum(file_bytes(tensors, METADATA) for tensors in files.values())
    return Plan(recipe, tuple(entries), checkpoint.bytes_total, after)


METADATA = {"format": "pt"}
"""What transformers expects in the header of every safetensors file."""


def _check_layers(recipe: Recipe, checkpoint: Checkpoint) -> None:
    known = set(checkpoint.moe_layers)
    for number, rule in enumerate(recipe.rules, 1):
        for layers in parse_layers(rule.layers) or []:
            unknown = next((layer for layer in layers if layer not in known), None)
            if unknown is not None:
                raise RecipeError(
                    f"rule {number} names layer {unknown}, but the MoE layers of "
                    f"{checkpoint.path.name} are {spell_layers(known)}"
                )
