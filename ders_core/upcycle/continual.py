"""Continual use: further deltas on an upcycled checkpoint, whose base and deltas stay.

W_i = W_shared + F(Δ_i) + F'(Δ'_i). The new deltas are a named set beside the old ones: a further
stage of each group's codec. The output keeps the way back to what went in (`ders rollback`), and a
patch made against that (`ders export --format patch --base`) is the set alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ders_core.codecs import Chain, DeltaCodec, Parts
from ders_core.codecs.chain import stage_seed
from ders_core.codecs.codec import prefixed
from ders_core.codecs.coding.prng import expert_seed
from ders_core.codecs.group import GroupCodec, Stacked
from ders_core.errors import RecipeError
from ders_core.files.output import copy_files
from ders_core.packed.manifest import MANIFEST, PackedGroup
from ders_core.packed.patch import keep_the_way_back
from ders_core.recipe import Recipe
from ders_core.recipe.summarise import rules_for
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.data import Windows
from ders_core.upcycle.experts import ExpertLinear
from ders_core.upcycle.loading import Upcycled, load_upcycled, stages
from ders_core.upcycle.saving import OWN_FILES, Contents, delta_parts, stored, write_contents
from ders_core.upcycle.sources import Model, Start
from ders_core.upcycle.surgery import named_parameters, new_delta

GIVEN = ("experts", "top_k", "layers", "universal")
"""What the checkpoint decides; a configuration need not repeat it."""


class FromPacked(Start):
    """An upcycled checkpoint. Raises CheckpointError or RecipeError if nothing can be added."""

    def __init__(self, path: str | Path, config: UpcycleConfig) -> None:
        self._source = Upcycled.open(path)
        self.store = self._source.packed.store
        self.config = self._completed(config)

    def _completed(self, config: UpcycleConfig) -> UpcycleConfig:
        known = self._source.config
        for name in GIVEN:
            told, own = getattr(config, name), getattr(known, name)
            if name in config.model_fields_set and told != own:
                raise RecipeError(
                    f"{name} is {told} in the configuration, but {own} in "
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
        given = {name: getattr(known, name) for name in GIVEN}
        return config.model_copy(update={**given, "base": "frozen"})

    def model(self, where: torch.device, windows: Windows) -> Model:
        network, blocks = load_upcycled(self._source, dtype=self.precision)
        network.to(where)
        first = windows[0]["input_ids"].unsqueeze(0).to(where)
        with torch.no_grad():
            before = network(input_ids=first, use_cache=False).logits
        for parameter in named_parameters(network, self.config.train):
            parameter.requires_grad_(True)
        for layer, block in blocks.items():
            for name, linear in block.projections.items():
                self._add(linear, layer, name)
            if self.config.router.train:
                block.train_router()
        with torch.no_grad():
            after = network(input_ids=first, use_cache=False).logits
        return Model(network, blocks, float((before - after).abs().max()))

    def _add(self, linear: ExpertLinear, layer: int, projection: str) -> None:
        """A new delta on one projection's experts."""
        base = linear.base
        assert base is not None
        seed, number = self._seed, len(linear.deltas)
        experts = self.config.experts + self.config.universal
        seeds = [
            stage_seed(expert_seed(seed, layer, projection, expert), number)
            for expert in range(experts)
        ]
        noise = self.config.noise * float(base.float().square().mean().sqrt())
        shape = (base.shape[0], base.shape[1])
        delta = new_delta(self.config.form(projection), shape, seeds, noise)
        linear.deltas.append(delta.to(base.device))

    @property
    def _seed(self) -> int:
        """Of the packed checkpoint: positions of every set are drawn from it."""
        return int(self._source.packed.manifest.recipe.get("seed", 0))

    def save(self, partial: Path, model: Model) -> None:
        packed = self._source.packed
        trained = {name: own for name, own in model.network.named_parameters() if own.requires_grad}
        contents = Contents(
            original={name: packed.original.spec(name) for name in packed.original.names()},
        )
        groups = {group.prefix: group for group in packed.manifest.groups}
        routers = self._routers(model) if self.config.router.train else {}
        for name, info in packed.store.tensors.items():
            if name.startswith(tuple(f"{prefix}." for prefix in groups)):
                continue
            parameter = routers.get(name, trained.get(name))
            own = info if parameter is None else Stacked.whole(stored(parameter, info.dtype))
            contents.tensors[name] = own
        for group in groups.values():
            linear = model.blocks[group.layer].projections[group.projection]
            self._add_group(contents, group, linear)
        recipe = Recipe.model_validate(packed.manifest.recipe)
        codecs = {(own.layer, own.projection): own.group_codec() for own in contents.groups}
        recipe = recipe.model_copy(update={"name": self.config.name, "rules": rules_for(codecs)})
        checksums = write_contents(partial, packed.config, packed.manifest.layout, recipe, contents)
        side = packed.store.side_files()
        copy_files([file for file in side if file.name not in (MANIFEST, *OWN_FILES)], partial)
        keep_the_way_back(partial, contents.specs, checksums, packed.store)

    def _routers(self, model: Model) -> dict[str, torch.nn.Parameter]:
        found: dict[str, torch.nn.Parameter] = {}
        for layer, block in model.blocks.items():
            found |= self._source.router_names(layer, block)
        return found

    def _add_group(self, contents: Contents, group: PackedGroup, linear: ExpertLinear) -> None:
        """A group with a further stage; what was there stays byte for byte."""
        tensors = self._source.packed.store.tensors
        old = group.group_codec()
        assert old.codec is not None
        codec = self.config.form(group.projection).codec()
        assert isinstance(codec, DeltaCodec)
        before = [stage for _, stage in stages(old.codec)]
        chain = GroupCodec.same(Chain(stages=(*before, codec)), group.shape[0])
        dtype = tensors[f"{group.prefix}.base"].dtype
        size = group.shape[1] * group.shape[2]
        parts: list[Parts] = []
        for expert, own in enumerate(self._source.parts(group)):
            kept = own if isinstance(old.codec, Chain) else prefixed("0", own)
            new = delta_parts(linear.deltas[-1], expert, codec, size, dtype)
            parts.append(kept | prefixed(str(len(before)), new))
        stacked, lengths = chain.stack(parts)
        for part in ("base", "bias"):
            name = f"{group.prefix}.{part}"
            if name in tensors:
                contents.tensors[name] = tensors[name]
        for part, tensor in stacked.items():
            contents.tensors[f"{group.prefix}.{part}"] = tensor
        told, uses = chain.dump()
        update = {"codec": told, "uses": uses, "lengths": lengths}
        contents.groups.append(group.model_copy(update=update))

    def record(self) -> dict[str, Any]:
        sets = [*self._source.sets, self.config.name]
        return {"sets": sets, "dense_config": self._source.dense}
