"""Continual use: further deltas on an upcycled checkpoint, whose base and deltas stay.

W_i = W_shared + F(Δ_i) + F'(Δ'_i). The new deltas are a named set besides the old ones: a further
stage of each group's codec. The output can be rolled back to the checkpoint that it extends
(`ders rollback`), and a patch made against that checkpoint (`ders export --format patch --base`)
holds the new set alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ders_core.codecs import Chain, DeltaCodec, Parts
from ders_core.codecs.chain import stage_seed
from ders_core.codecs.coding.prng import expert_seed
from ders_core.codecs.group import GroupCodec, Stacked
from ders_core.codecs.part_names import prefixed
from ders_core.compute.progress import Meter
from ders_core.errors import RecipeError
from ders_core.packed.patch import write_rollback
from ders_core.packed.stacks import PackedGroup
from ders_core.recipe import Recipe
from ders_core.recipe.summarise import rules_for
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.data import Windows
from ders_core.upcycle.delta import stored
from ders_core.upcycle.experts import ExpertLinear
from ders_core.upcycle.loading import UpcycledCheckpoint, load_upcycled, stages
from ders_core.upcycle.saving import OWN_FILES, Contents, write_contents
from ders_core.upcycle.sizes import training_room
from ders_core.upcycle.sources import TrainableModel, TrainingInput
from ders_core.upcycle.surgery import named_parameters

INHERITED = ("experts", "top_k", "layers", "universal")
"""Fields that the checkpoint decides; a configuration need not repeat them."""


class FromPacked(TrainingInput):
    """An upcycled checkpoint. Raises CheckpointError or RecipeError if nothing can be added."""

    def __init__(self, path: str | Path, config: UpcycleConfig) -> None:
        self._source = UpcycledCheckpoint.open(path)
        self.store = self._source.packed.store
        self.config = self._completed(config)

    def _completed(self, config: UpcycleConfig) -> UpcycleConfig:
        """The configuration with the inherited fields filled in."""
        known = self._source.config
        for name in INHERITED:
            asked, present = getattr(config, name), getattr(known, name)
            if name in config.model_fields_set and asked != present:
                raise RecipeError(
                    f"{name} is {asked} in the configuration, but {present} in "
                    f"{self.store.path.name}, whose base stays; leave it out"
                )
        if config.name in self._source.sets:
            raise RecipeError(
                f"{self.store.path.name} has a set of deltas named {config.name!r} already; give "
                "the new one another name"
            )
        if not all(rule.form.shares_base for rule in (*config.forms, *known.forms)):
            raise RecipeError(
                "vanilla experts have no base on which further deltas could be trained; give "
                "sparse or lowrank forms"
            )
        inherited = {name: getattr(known, name) for name in INHERITED}
        return config.model_copy(update={**inherited, "base": "frozen"})

    def model(self, where: torch.device, windows: Windows, meter: Meter) -> TrainableModel:
        meter.report("loading the upcycled checkpoint")
        network, blocks = load_upcycled(self._source, dtype=self.precision)
        network.to(where)
        meter.report("adding deltas and comparing their start with the checkpoint")
        first = windows[0]["input_ids"].unsqueeze(0).to(where)
        with torch.no_grad():
            before = network(input_ids=first, use_cache=False).logits
        for parameter in named_parameters(network, self.config.train):
            parameter.requires_grad_(True)
        for layer, block in blocks.items():
            for projection, linear in block.projections.items():
                self._add_delta(linear, layer, projection)
            if self.config.router.train:
                block.train_router()
        with torch.no_grad():
            after = network(input_ids=first, use_cache=False).logits
        return TrainableModel(network, blocks, float((before - after).abs().max()))

    def _add_delta(self, linear: ExpertLinear, layer: int, projection: str) -> None:
        """A new delta on each expert of one projection."""
        base = linear.base
        assert base is not None
        number = len(linear.deltas)
        experts = self.config.experts + self.config.universal
        seeds = [
            stage_seed(expert_seed(self._seed, layer, projection, expert), number)
            for expert in range(experts)
        ]
        noise = self.config.noise * float(base.float().square().mean().sqrt())
        shape = (base.shape[0], base.shape[1])
        delta = self.config.form(projection).delta(shape, seeds, noise)
        linear.deltas.append(delta.to(base.device))

    @property
    def _seed(self) -> int:
        """The packed checkpoint's seed, from which the positions of every set are drawn."""
        return int(self._source.packed.manifest.recipe.get("seed", 0))

    def room(self) -> int:
        trained = 0
        for group in self._source.packed.manifest.groups:
            experts, *shape = group.shape
            trained += experts * self.config.form(group.projection).values((shape[0], shape[1]))
        return self.store.bytes_total + training_room(self.config, trained)

    def save(self, partial: Path, model: TrainableModel) -> None:
        packed = self._source.packed
        contents = self._contents(model)
        codecs = {(group.layer, group.projection): group.group_codec() for group in contents.groups}
        recipe = Recipe.model_validate(packed.manifest.recipe)
        recipe = recipe.model_copy(update={"name": self.config.name, "rules": rules_for(codecs)})
        side_files = [file for file in packed.beside.files if file.name not in OWN_FILES]
        checksums = write_contents(
            partial, packed.config, packed.manifest.layout, recipe, contents, side_files
        )
        write_rollback(partial, contents.specs, checksums, packed.store)

    def _contents(self, model: TrainableModel) -> Contents:
        """What is trained, and everything else as it is in the checkpoint."""
        packed = self._source.packed
        contents = Contents(
            original={name: packed.original.spec(name) for name in packed.original.names()}
        )
        trained = {
            name: parameter
            for name, parameter in model.network.named_parameters()
            if parameter.requires_grad
        }
        if self.config.router.train:
            trained |= self._routers(model)
        groups = {group.prefix: group for group in packed.manifest.groups}
        for name, info in packed.store.tensors.items():
            if name.startswith(tuple(f"{prefix}." for prefix in groups)):
                continue
            parameter = trained.get(name)
            contents.tensors[name] = (
                info if parameter is None else Stacked.whole(stored(parameter, info.dtype.torch))
            )
        for group in groups.values():
            linear = model.blocks[group.layer].projections[group.projection]
            self._add_group(contents, group, linear)
        return contents

    def _routers(self, model: TrainableModel) -> dict[str, torch.nn.Parameter]:
        """Name on disk -> the routers of all blocks."""
        routers: dict[str, torch.nn.Parameter] = {}
        for layer, block in model.blocks.items():
            routers |= self._source.router_names(layer, block)
        return routers

    def _add_group(self, contents: Contents, group: PackedGroup, linear: ExpertLinear) -> None:
        """A group with a further stage; the stages before it stay byte for byte."""
        tensors = self._source.packed.store.tensors
        codec_before = group.group_codec().codec
        assert codec_before is not None
        codec = self.config.form(group.projection).codec()
        assert isinstance(codec, DeltaCodec)
        stages_before = [stage for _, stage in stages(codec_before)]
        chain = GroupCodec.same(Chain(stages=(*stages_before, codec)), group.shape[0])
        dtype = tensors[f"{group.prefix}.base"].dtype.torch
        parts: list[Parts] = []
        for expert, parts_before in enumerate(self._source.parts(group)):
            chained = isinstance(codec_before, Chain)
            kept = parts_before if chained else prefixed("0", parts_before)
            new = linear.sets()[-1].parts(expert, dtype)
            parts.append(kept | prefixed(str(len(stages_before)), new))
        stacked, lengths = chain.stack(parts)
        for part in ("base", "bias"):
            name = f"{group.prefix}.{part}"
            if name in tensors:
                contents.tensors[name] = tensors[name]
        for part, tensor in stacked.items():
            contents.tensors[f"{group.prefix}.{part}"] = tensor
        fields, uses = chain.dump()
        update = {"codec": fields, "uses": uses, "lengths": lengths}
        contents.groups.append(group.model_copy(update=update))

    def record(self) -> dict[str, Any]:
        sets = [*self._source.sets, self.config.name]
        return {"sets": sets, "dense_config": self._source.dense}
