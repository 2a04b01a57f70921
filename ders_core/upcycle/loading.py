"""Loads an upcycled checkpoint as a model whose experts are computed with as they were trained:
no whole matrix of an expert is made, or one at a time (see `ders_core.upcycle.shared`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.activations import ACT2FN

from ders_core.checkpoint.layouts import Layout, known_layouts
from ders_core.codecs import Chain, Codec, Parts
from ders_core.codecs.chain import stage_seed
from ders_core.codecs.coding.prng import expert_seed
from ders_core.codecs.part_names import within
from ders_core.compute.device import resolve_device
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.json_object import read_json
from ders_core.hf.moe_ffn import FFNShape
from ders_core.hf.silence import silent
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup
from ders_core.upcycle.architecture import shared_gate
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.experts import ExpertLinear
from ders_core.upcycle.forms import Form, SavedSet, form_that_reads
from ders_core.upcycle.moe_block import UpcycledFFN
from ders_core.upcycle.saving import RECORD
from ders_core.upcycle.surgery import find_sites


@dataclass(frozen=True)
class UpcycledCheckpoint:
    """A packed checkpoint that `ders upcycle` wrote.

    dense: config.json of the dense model. modules: layer -> the path of its FFN in that model.
    sets: the names of its sets of deltas, the oldest first.
    """

    packed: PackedCheckpoint
    config: UpcycleConfig
    dense: dict[str, Any]
    modules: dict[int, str]
    sets: tuple[str, ...]

    @classmethod
    def open(cls, path: str | Path) -> UpcycledCheckpoint:
        """Raises CheckpointError if the directory is not the output of upcycling."""
        packed = PackedCheckpoint(path)
        if not (packed.path / RECORD).is_file():
            raise CheckpointError(
                f"{packed.path} is not the output of upcycling: it has no {RECORD}; give what "
                "`ders upcycle` wrote"
            )
        record = read_json(packed.path / RECORD)
        try:
            config = UpcycleConfig.model_validate(record["config"])
            modules = {int(layer): str(path) for layer, path in record["modules"].items()}
            return cls(packed, config, dict(record["dense_config"]), modules, tuple(record["sets"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{packed.path / RECORD} is malformed; copy the directory again"
            ) from error

    @property
    def layout(self) -> Layout:
        """How the experts are named on disk."""
        family = self.packed.manifest.layout
        for layout in known_layouts():
            if layout.family == family:
                return layout
        raise CheckpointError(
            f"{self.packed.path} names the layout {family[:40]!r}, which is not known here; "
            "install the version of ders-studio that wrote it"
        )

    def groups(self, layer: int) -> dict[str, PackedGroup]:
        """By projection."""
        return {
            group.projection: group for group in self.packed.manifest.groups if group.layer == layer
        }

    def linear(self, group: PackedGroup, dtype: torch.dtype) -> ExpertLinear:
        """One projection's experts as they are stored, held in `dtype`."""
        tensors = self.packed.store.tensors

        def read(part: str) -> torch.Tensor | None:
            info = tensors.get(f"{group.prefix}.{part}")
            return None if info is None else info.read().to(dtype)

        first, *further = self._sets(group, dtype)
        form = self._form(group, first.codec)
        linear = form.load_linear(first, read("base"), read("bias"))
        for saved in further:
            linear.deltas.append(self._form(group, saved.codec).load(saved))
        return linear

    def _sets(self, group: PackedGroup, dtype: torch.dtype) -> list[SavedSet]:
        """A group's sets of deltas, the oldest first."""
        codec = group.group_codec().codec
        plain_base = group.bases is None and group.base_codec is None and not group.without_base
        if codec is None or not plain_base or self.packed.manifest.others:
            raise CheckpointError(
                f"{self.packed.path}: layer {group.layer}, {group.projection} has several codecs "
                "or bases, or bases and other tensors are coded, which no training leaves; give "
                "what `ders upcycle` wrote"
            )
        experts, out, width = group.shape
        seed = int(self.packed.manifest.recipe.get("seed", 0))
        seeds = [
            expert_seed(seed, group.layer, group.projection, expert) for expert in range(experts)
        ]
        parts = self.parts(group)
        return [
            SavedSet(
                stage,
                [within(prefix, each) if prefix else each for each in parts],
                (out, width),
                [stage_seed(each, number) for each in seeds],
                dtype,
            )
            for number, (prefix, stage) in enumerate(stages(codec))
        ]

    def _form(self, group: PackedGroup, codec: Codec) -> type[Form]:
        form = form_that_reads(codec)
        if form is None:
            raise CheckpointError(
                f"{self.packed.path}: layer {group.layer}, {group.projection} is stored as "
                f"{codec.label!r}, which no training leaves; give what `ders upcycle` wrote"
            )
        return form

    def parts(self, group: PackedGroup) -> list[Parts]:
        """The stored parts of each expert."""
        tensors, codec = self.packed.store.tensors, group.group_codec()

        def read(part: str, rows: slice) -> torch.Tensor:
            return tensors[f"{group.prefix}.{part}"].read(rows)

        experts, out, width = group.shape
        dtype = Dtype[group.dtype]
        return [
            codec.take(expert, read, (out, width), dtype, group.lengths)
            for expert in range(experts)
        ]

    def router_names(self, layer: int, block: UpcycledFFN) -> dict[str, nn.Parameter]:
        """Name on disk -> parameter, of a layer's router and of the universal expert's gate."""
        name = self.groups(layer)["up"].prefix.rpartition(".ders.")[0]
        names = {f"{name}.{self.layout.router[0]}": block.router}
        if block.universal is not None:
            names[shared_gate(name)] = block.universal
        return names


def stages(codec: Codec) -> list[tuple[str, Codec]]:
    """(prefix of its parts, codec) of each set of deltas."""
    if isinstance(codec, Chain):
        return [(str(number), stage) for number, stage in enumerate(codec.stages)]
    return [("", codec)]


def load_upcycled(
    path: str | Path | UpcycledCheckpoint, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, dict[int, UpcycledFFN]]:
    """The dense family's model, in evaluation mode, with experts on one base as its FFNs, and
    these by layer; nothing has a gradient.

    dtype: by default the checkpoint's. Raises CheckpointError if `path` is not the output of
    upcycling.
    """
    source = path if isinstance(path, UpcycledCheckpoint) else UpcycledCheckpoint.open(path)
    target = resolve_device(device)
    packed = source.packed
    prefixes = tuple(f"{group.prefix}." for group in packed.manifest.groups)
    others = {
        name: info.read()
        for name, info in packed.store.tensors.items()
        if not name.startswith(prefixes)
    }
    kind = dtype or next(iter(others.values())).dtype
    config = AutoConfig.for_model(**source.dense)
    with silent():
        model = AutoModelForCausalLM.from_config(config, dtype=kind)
        model = type(model).from_pretrained(None, config=config, state_dict=others, dtype=kind)
    shapes = {site.layer: site.shape(model) for site in find_sites(model)}
    blocks: dict[int, UpcycledFFN] = {}
    for layer, module in source.modules.items():
        blocks[layer] = _block(source, layer, others, shapes[layer], kind)
        model.set_submodule(module, blocks[layer])
    model.requires_grad_(False)
    return model.to(target).eval(), blocks


def _block(
    source: UpcycledCheckpoint,
    layer: int,
    others: dict[str, torch.Tensor],
    shape: FFNShape,
    dtype: torch.dtype,
) -> UpcycledFFN:
    groups = source.groups(layer)
    config = source.config
    block = UpcycledFFN(
        {projection: source.linear(group, dtype) for projection, group in groups.items()},
        torch.zeros(config.experts, groups["up"].shape[2], dtype=dtype),
        top_k=config.top_k,
        universal=config.universal,
        activation=ACT2FN[shape.activation],
        dropout=shape.dropout,
    )
    for name, parameter in source.router_names(layer, block).items():
        parameter.data = others[name].to(dtype)
    return block
