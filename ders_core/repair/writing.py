"""Write a repaired checkpoint: the packed files, with other bytes where it was trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Tell
from ders_core.files.in_place import write_at
from ders_core.files.side_files import local_bytes
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import tensor_bytes, write_json, write_text
from ders_core.packed.manifest import Encoded, Repair
from ders_core.packed.names import MANIFEST
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.writer import PackedContents, finish_packed
from ders_core.pipeline.card import CARD, is_ours, model_card, read_card
from ders_core.pipeline.quality import Quality
from ders_core.pipeline.verify import encoded_anew
from ders_core.recipe import Recipe
from ders_core.repair.tuned import Change


def output_bytes(packed: PackedCheckpoint) -> int:
    """Bytes of what will be written."""
    return packed.bytes_total + local_bytes(packed.beside.files)


def write_weights(
    directory: Path, packed: PackedCheckpoint, changes: Iterable[Change], tell: Tell
) -> dict[str, str]:
    """Copy the weight files and write the changes into the copies: name -> hex SHA-256 of each
    tensor that has other bytes now. What follows in a file stays where it is."""
    for file in packed.store.files:
        tell(f"writing {file}")
        shutil.copyfile(packed.store.path / file, directory / file)
    by_tensor: dict[str, list[Change]] = {}
    for change in changes:
        by_tensor.setdefault(change.tensor, []).append(change)
    checksums: dict[str, str] = {}
    for name, parts in by_tensor.items():
        stored = packed.store.tensors[name]
        values = stored.read()
        for part in parts:
            rows = values if part.rows is None else values[part.rows]
            rows.copy_(part.values.view(rows.shape))
        place = stored._replace(file=directory / stored.file.name)
        sha256 = write_at(place, tensor_bytes(values))
        if sha256 != packed.manifest.checksums[name]:
            checksums[name] = sha256
    return checksums


def write_descriptions(
    directory: Path, packed: PackedCheckpoint, checksums: Mapping[str, str], repair: Repair
) -> None:
    """Write everything beside the weight files, of which `checksums` are the changed tensors."""
    manifest = packed.manifest
    carried = packed.original.carried().keys() & checksums.keys()
    replaced = {name: manifest.checksums[name] for name in sorted(carried)}
    contents = PackedContents(
        tensors=packed.store.tensors,
        groups=manifest.groups,
        source=manifest.source,
        layout=manifest.layout,
        config=packed.config,
        recipe=Recipe.model_validate(manifest.recipe),
        side_files=packed.beside.files,
        hub_name=packed.hub_name,
        others=manifest.others,
        encoded=manifest.encoded,
        repairs=[*manifest.repairs, repair.model_copy(update={"replaced": replaced})],
    )
    files: dict[str, dict[str, TensorSpec]] = {name: {} for name in packed.store.files}
    for tensor in sorted(packed.store.tensors.values(), key=lambda each: (each.begin, each.end)):
        files[tensor.file.name][tensor.name] = tensor.spec
    finish_packed(directory, contents, files, {**manifest.checksums, **checksums})


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
