"""Write a repaired checkpoint: the packed files, with other bytes where it was trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import torch

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Tell
from ders_core.files.side_files import local_bytes
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import tensor_bytes, write_file, write_json, write_text
from ders_core.packed.manifest import Encoded, Repair
from ders_core.packed.names import MANIFEST
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup, PackedTensor
from ders_core.packed.writer import PackedDescription, finish_packed
from ders_core.pipeline.card import CARD, is_ours, model_card, read_card
from ders_core.pipeline.quality import Quality
from ders_core.pipeline.verify import encoded_anew
from ders_core.recipe import Recipe
from ders_core.repair.tuned import Change

LENGTHS: Mapping[str, str] = {"lengths": "", "base_lengths": "base."}
"""Fields of a manifest's entry that hold lengths, and what the names of these parts begin with."""

S = TypeVar("S", PackedGroup, PackedTensor)


def output_bytes(packed: PackedCheckpoint) -> int:
    """Bytes of what will be written, but for gains."""
    return packed.bytes_total + local_bytes(packed.beside.files)


@dataclass(frozen=True)
class Rewritten:
    """Weight files with what was trained. files: their tensors, in their order. checksums: name ->
    hex SHA-256 of each tensor. lengths: name of a tensor -> first row of a matrix's part in it
    before -> how long the part is now, where it has another length."""

    files: Mapping[str, Mapping[str, TensorSpec]]
    checksums: Mapping[str, str]
    lengths: Mapping[str, Mapping[int, int]]

    def stack(self, stack: S) -> S:
        """The manifest's entry with its new lengths."""
        return stack.model_copy(
            update={
                field: {
                    part: tuple(self._lengths(f"{stack.prefix}.{head}{part}", before))
                    for part, before in getattr(stack, field).items()
                }
                for field, head in LENGTHS.items()
                if hasattr(stack, field)
            }
        )

    def _lengths(self, name: str, before: Sequence[int]) -> Iterator[int]:
        changed = self.lengths.get(name, {})
        begins = accumulate(before, initial=0)
        return (changed.get(begin, length) for begin, length in zip(begins, before, strict=False))


def write_weights(
    directory: Path, packed: PackedCheckpoint, changes: Iterable[Change], tell: Tell
) -> Rewritten:
    """Write the weight files with the changes in them. What is not longer than before leaves all
    that follows in its place."""
    by_tensor: dict[str, list[Change]] = {}
    for change in changes:
        by_tensor.setdefault(change.tensor, []).append(change)
    lengths: dict[str, dict[int, int]] = {}
    files: dict[str, dict[str, TensorSpec]] = {name: {} for name in packed.store.files}
    for tensor in sorted(packed.store.tensors.values(), key=lambda each: (each.begin, each.end)):
        grown = [change for change in by_tensor.get(tensor.name, ()) if change.grown]
        spec = tensor.spec
        if grown:
            lengths[tensor.name] = {change.first: len(change.values) for change in grown}
            count = tensor.shape[0] + sum(change.grown for change in grown)
            spec = TensorSpec(tensor.dtype, (count, *tensor.shape[1:]))
        files[tensor.file.name][tensor.name] = spec
    checksums: dict[str, str] = {}

    def read(name: str) -> Iterable[bytes | memoryview]:
        stored = packed.store.tensors[name]
        if name not in by_tensor:
            return stored.raw()
        return tensor_bytes(_changed(stored.read(), by_tensor[name]))

    for file, specs in files.items():
        tell(f"writing {file}")
        metadata = packed.store.metadata[file]
        checksums |= write_file(directory / file, specs, read, metadata)
    return Rewritten(files, checksums, lengths)


def _changed(values: torch.Tensor, changes: Sequence[Change]) -> torch.Tensor:
    """The tensor with other values in all of it or some of its rows, and perhaps more rows."""
    pieces, end = list[torch.Tensor](), 0
    for change in sorted(changes, key=lambda each: each.first):
        if change.rows is None:
            return change.values.to(values).view(values.shape)
        new = change.values.to(values).reshape(-1, *values.shape[1:])
        pieces += [values[end : change.rows.start], new]
        end = change.rows.stop
    return torch.cat([*pieces, values[end:]])


def write_descriptions(
    directory: Path, packed: PackedCheckpoint, rewritten: Rewritten, repair: Repair
) -> None:
    """Write everything beside the weight files."""
    manifest = packed.manifest
    replaced = {
        name: manifest.checksums[name]
        for name in sorted(packed.original.carried())
        if rewritten.checksums[name] != manifest.checksums[name]
    }
    description = PackedDescription(
        groups=[rewritten.stack(group) for group in manifest.groups],
        source=manifest.source,
        layout=manifest.layout,
        config=packed.config,
        recipe=Recipe.model_validate(manifest.recipe),
        side_files=packed.beside.files,
        hub_name=packed.hub_name,
        others=[rewritten.stack(other) for other in manifest.others],
        encoded=manifest.encoded,
        repairs=[*manifest.repairs, repair.model_copy(update={"replaced": replaced})],
    )
    finish_packed(directory, description, rewritten.files, rewritten.checksums)


def complete(
    directory: Path,
    original: Checkpoint,
    figures: Mapping[str, float],
    quality: Quality,
    tell: Tell,
) -> None:
    """Once a repaired checkpoint was measured: say in its manifest what it came to and how far its
    weights are from the original's now, and renew a model card of ours. figures: of `Repair`."""
    packed = PackedCheckpoint(directory)
    anew: dict[str, Encoded] = encoded_anew(packed, original, tell)
    *before, last = packed.manifest.repairs
    repairs = (*before, last.model_copy(update=dict(figures)))
    manifest = packed.manifest.model_copy(update={"encoded": anew, "repairs": repairs})
    write_json(directory / MANIFEST, manifest.model_dump(mode="json"))
    if is_ours(read_card(directory)):
        (directory / CARD).unlink()
        written = PackedCheckpoint(directory)
        card = model_card(written, "packed", written.bytes_total, quality.to_dict())
        write_text(directory / CARD, card)
