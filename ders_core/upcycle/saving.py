"""Writes a trained model as a packed checkpoint: the deltas are stored as they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ders_core.codecs.group import GroupCodec, Stacked
from ders_core.files.side_files import SideFile
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import TensorReader
from ders_core.packed.stacks import PackedGroup, PackedSource
from ders_core.packed.writer import PackedContents, source_on_no_disk, write_packed
from ders_core.recipe import DenseBase, Recipe
from ders_core.recipe.summarise import rules_for
from ders_core.upcycle.architecture import Target, shared_gate
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.delta import stored
from ders_core.upcycle.dense_model import DenseModel
from ders_core.upcycle.experts import ExpertLinear
from ders_core.upcycle.history import HISTORY
from ders_core.upcycle.moe_block import UpcycledFFN

RECORD = "ders_upcycle.json"
OWN_FILES = (RECORD, HISTORY)


@dataclass
class Contents:
    """The tensors of an upcycled checkpoint while they are collected.

    tensors: what is written; a tensor that does not change stays on disk until then. original:
    dtype and shape of each tensor of the MoE that the checkpoint stands for, in order. groups: how
    the packed tensors are read.
    """

    tensors: dict[str, Stacked | TensorReader] = field(default_factory=dict)
    original: dict[str, TensorSpec] = field(default_factory=dict)
    groups: list[PackedGroup] = field(default_factory=list)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {name: tensor.spec for name, tensor in self.tensors.items()}


def save(
    directory: Path,
    dense: DenseModel,
    model: nn.Module,
    blocks: Mapping[int, UpcycledFFN],
    config: UpcycleConfig,
    target: Target,
) -> None:
    """Write the files of a packed checkpoint into `directory`, which exists."""
    contents = _contents(dense, model, blocks, config, target)
    codecs = {(group.layer, group.projection): group.group_codec() for group in contents.groups}
    recipe = Recipe(
        name=config.name,
        seed=config.seed,
        base=DenseBase(dense=Path(dense.path.name)),
        extended=config.universal,
        rules=rules_for(codecs),
    )
    side_files = dense.store.beside.files
    write_contents(directory, target.config, target.layout.family, recipe, contents, side_files)


def write_contents(
    directory: Path,
    config: Mapping[str, Any],
    layout: str,
    recipe: Recipe,
    contents: Contents,
    side_files: Sequence[SideFile],
) -> Mapping[str, str]:
    """Write a packed checkpoint into `directory`, which exists; return the hex SHA-256 of each
    tensor.

    config, layout: of the MoE that the checkpoint stands for. side_files: copied as they are.
    """
    packed = PackedContents(
        tensors=contents.tensors,
        groups=contents.groups,
        source=source_on_no_disk(contents.original, config),
        layout=layout,
        config=config,
        recipe=recipe,
        side_files=side_files,
    )
    return write_packed(directory, packed).checksums


def _contents(
    dense: DenseModel,
    model: nn.Module,
    blocks: Mapping[int, UpcycledFFN],
    config: UpcycleConfig,
    target: Target,
) -> Contents:
    contents = Contents()
    ffn_names = {
        name: ffn.layer
        for ffn in dense.ffns
        if ffn.layer in blocks
        for name in dense.store.tensors
        if name.startswith(f"{ffn.block}.")
    }
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    written: set[int] = set()
    for names in dense.store.files.values():
        for name in names:
            layer = ffn_names.get(name)
            if layer is None:
                info = dense.store.tensors[name]
                parameter = _of(name, trained)
                contents.tensors[name] = (
                    info
                    if parameter is None
                    else Stacked.whole(stored(parameter, info.dtype.torch))
                )
                contents.original[name] = info.spec
            elif layer not in written:
                written.add(layer)
                _add_block(contents, dense, layer, blocks[layer], config, target)
    return contents


def _of(name: str, trained: Mapping[str, nn.Parameter]) -> nn.Parameter | None:
    """The parameter of a tensor on disk, whose name may lack the model's prefix."""
    named = (each for key, each in trained.items() if key == name or key.endswith(f".{name}"))
    return next(named, None)


def _add_block(
    contents: Contents,
    dense: DenseModel,
    layer: int,
    block: UpcycledFFN,
    config: UpcycleConfig,
    target: Target,
) -> None:
    ffn = dense.ffns[layer]
    name = target.block(ffn.block)
    experts = config.experts
    dtype = ffn.weights["up"].dtype
    plain = {target.router(name): block.router}
    if block.universal is not None:
        plain[shared_gate(name)] = block.universal
    for tensor_name, parameter in plain.items():
        tensor = stored(parameter, dtype.torch)
        contents.tensors[tensor_name] = Stacked.whole(tensor)
        contents.original[tensor_name] = TensorSpec(dtype, tuple(tensor.shape))
    for projection, linear in block.projections.items():
        prefix = f"{name}.ders.{projection}"
        codec = GroupCodec.same(config.form(projection).codec(), experts + config.universal)
        shape = ffn.weights[projection].shape
        tensors, lengths = _group_tensors(linear, codec, dtype.torch)
        weights = target.experts(name, projection, config, "weight")
        biases: list[str] = []
        if linear.bias is not None:
            biases = target.experts(name, projection, config, "bias")
        fields, uses = codec.dump()
        contents.tensors |= {f"{prefix}.{part}": tensor for part, tensor in tensors.items()}
        contents.original |= dict.fromkeys(weights, TensorSpec(dtype, shape))
        contents.original |= dict.fromkeys(biases, TensorSpec(dtype, shape[:1]))
        contents.groups.append(
            PackedGroup(
                layer=layer,
                projection=projection,
                prefix=prefix,
                codec=fields,
                uses=uses,
                lengths=lengths,
                shape=(len(weights), *shape),
                dtype=dtype.name,
                experts=tuple(PackedSource(tensor=weight) for weight in weights),
                biases=tuple(PackedSource(tensor=bias, axes="out") for bias in biases),
            )
        )


def _group_tensors(
    linear: ExpertLinear, codec: GroupCodec, dtype: torch.dtype
) -> tuple[dict[str, Stacked], dict[str, tuple[int, ...]]]:
    """(tensors by part, lengths of those that vary)"""
    parts = [linear.parts(expert, dtype) for expert in range(len(codec.uses))]
    stacked, lengths = codec.stack(parts)
    base = {} if linear.base is None else {"base": Stacked.whole(stored(linear.base, dtype))}
    bias = {} if linear.bias is None else {"bias": Stacked.whole(stored(linear.bias, dtype))}
    return base | stacked | bias, lengths


def public_config(config: UpcycleConfig) -> dict[str, Any]:
    """The configuration as it is published: files by their names, without local paths."""
    fields = config.model_dump(mode="json")
    data = fields["data"]
    data["texts"] = [Path(text).name for text in data["texts"]]
    data["heldout"] = Path(data["heldout"]).name if data["heldout"] else None
    return fields
