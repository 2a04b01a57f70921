"""The contents of a packed checkpoint whose carried tensors have other values now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ders_core.codecs.group import Stacked
from ders_core.errors import CheckpointError
from ders_core.files.writer import json_text
from ders_core.later import torch
from ders_core.packed.manifest import Source
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup
from ders_core.packed.writer import UNKNOWN, PackedContents, PackedFile, TensorBytes
from ders_core.recipe import Recipe


def renewed(
    packed: PackedCheckpoint,
    values: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
) -> PackedContents:
    """Everything of `packed` as its files hold it, but for what has changed.

    values: tensors that the experts' weights are no part of, by the original's names, in any dtype
    and shape, and tensors that the original does not have. Each is carried as it is: a tensor that
    was coded no longer is, nor are biases a part of their group. settings: entries of config.json.
    With either, the original is no longer on a disk, so nothing is said of how far weights are from
    it. Where all tensors have the names, dtypes and shapes that they had, they lie as they did.
    Raises CheckpointError for a tensor that the original stores as codes.
    """
    manifest, config = packed.manifest, {**packed.config, **settings}
    if not values and not settings:
        source, encoded, repairs = manifest.source, manifest.encoded, manifest.repairs
    else:
        source, encoded = _source(packed, values, config), {}
        repairs = tuple(each.model_copy(update={"replaced": {}}) for each in manifest.repairs)
    freed = _freed(packed, values)
    loose = [group for group in manifest.groups if group.layer in freed]
    groups = [
        group.model_copy(update={"biases": ()}) if group in loose else group
        for group in manifest.groups
    ]
    others = [other for other in manifest.others if other.name not in values]
    gone = {f"{group.prefix}.bias" for group in loose if group.has_biases}
    gone |= {
        part.name
        for other in manifest.others
        if other.name in values
        for part in packed.matrices.parts(other)
    }
    tensors: dict[str, TensorBytes] = {
        name: tensor for name, tensor in packed.store.tensors.items() if name not in gone
    }
    biases = {source.tensor for group in loose for source in group.biases}
    for name in sorted(biases - values.keys()):
        tensors[name] = Stacked.whole(packed.original.read(name))
    for name, tensor in values.items():
        tensors[name] = Stacked.whole(tensor.detach().cpu().contiguous())
    return PackedContents(
        tensors=tensors,
        files=_files(packed, tensors),
        groups=groups,
        source=source,
        layout=manifest.layout,
        config=config,
        recipe=Recipe.model_validate(manifest.recipe),
        side_files=packed.beside.files,
        hub_name=None if values else packed.hub_name,
        others=others,
        encoded=encoded,
        repairs=repairs,
    )


def _files(packed: PackedCheckpoint, tensors: Mapping[str, TensorBytes]) -> list[PackedFile]:
    """The weight files as they are; none if these tensors do not fit into them."""
    before = packed.store.tensors
    if {name: tensor.spec for name, tensor in tensors.items()} != packed.store.specs:
        return []
    return [
        PackedFile(names, min((before[name].begin for name in names), default=0))
        for names in packed.store.files.values()
    ]


def _source(
    packed: PackedCheckpoint, values: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> Source:
    """What the original would be, with these tensors and this config."""
    source, original = packed.manifest.source, packed.original
    scales = original.readers.keys() - packed.model_tensors().names().keys()
    coded = original.assembler.coded.keys() | scales
    for name in values:
        if name in coded:
            raise CheckpointError(
                f"{packed.path}: {name!r} was changed, and the original stores it as codes; load "
                "the model with the mode 'synthesized' to save it"
            )
    added = tuple(name for name in values if name not in original.readers)
    files = dict(source.files)
    last = next(reversed(files))
    files[last] = (*files[last], *added)
    grown = sum(
        tensor.nbytes - (original.spec(name).nbytes if name in original.readers else 0)
        for name, tensor in values.items()
    )
    changes = {
        "identity": UNKNOWN,
        "files": files,
        "bytes_total": source.bytes_total + grown,
        "config": json_text(config),
    }
    return source.model_copy(update=changes)


def _freed(packed: PackedCheckpoint, values: Mapping[str, torch.Tensor]) -> set[int]:
    """The layers of which a bias of an expert has changed."""

    def has_changed(group: PackedGroup) -> bool:
        return any(source.tensor in values for source in group.biases)

    return {group.layer for group in packed.manifest.groups if has_changed(group)}
