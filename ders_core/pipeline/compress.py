"""Compress: decompose each group, replace its deltas, write the packed checkpoint. One stream.

Every group is encoded on its own and staged as one file beside the output; staged groups are what
an interrupted run continues from. Then the shards are assembled from the staged files and from the
source, tensor by tensor. The bytes depend on the checkpoint, the recipe and the device alone: a
task computes on one thread, whatever runs it and however many run beside it.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress, quiet
from ders_core.compute.tasks import Run, one_by_one, with_next
from ders_core.decompose.bases import DenseParent
from ders_core.errors import OutputError
from ders_core.files.header import read_header
from ders_core.files.output import copy_files, output_directory
from ders_core.files.spec import NAMES
from ders_core.files.store import read_json
from ders_core.files.tensor import TensorReader
from ders_core.files.writer import METADATA, shards, write_file, write_index, write_json
from ders_core.packed.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    QUANT_METHOD,
    Manifest,
    PackedGroup,
    PackedSource,
    Source,
    public_recipe,
)
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.encode import EncodeTask, encode_group
from ders_core.pipeline.plan import Plan, PlanEntry, carried_specs, resolve
from ders_core.pipeline.report import Report, ReportEntry
from ders_core.recipe import DenseBase, Recipe


def compress(
    checkpoint: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    device: str = "cpu",
    resume: bool = False,
    run: Run = one_by_one,
    progress: Progress = quiet,
) -> Report:
    """Write the packed form of `checkpoint`, a directory or an address, to the new directory `out`.

    A packed one is packed anew, as the original that it stands for, once its checksums are checked.
    device: where deltas are encoded, "cpu" or "cuda". resume: continue an interrupted run of the
    same checkpoint and recipe. progress counts bytes checked, read for encoding, and written.
    Raises DersError and its children; then nothing stands at `out`, and the groups that were
    finished wait in `<out>.partial`.
    """
    started = time.monotonic()
    source = open_checkpoint(checkpoint)
    plan = resolve(recipe, source)
    dense = str(recipe.base.dense) if isinstance(recipe.base, DenseBase) else None
    base = recipe.base if isinstance(recipe.base, str) else "mean"
    parent = DenseParent.open(dense) if dense else None
    if recipe.calibration is not None:
        Calibration.open(recipe.calibration).check(source)
    work = {
        "format_version": FORMAT_VERSION,
        "checkpoint": source.identity,
        "dense": parent.store.identity if parent else None,
        "calibration": _sha256(recipe.calibration) if recipe.calibration else None,
        "recipe": public_recipe(recipe),
        "device": device,
    }
    done, total = 0, (source.packed_bytes or 0) + plan.bytes_before + plan.bytes_after

    def checked(count: int, message: str) -> None:
        nonlocal done
        done += count
        progress(done, total, message)

    with output_directory(out, work=work, resume=resume, needs=2 * plan.bytes_after) as partial:
        source.store.check(checked)
        done = source.packed_bytes or 0
        staging = partial / ".ders-groups"
        staging.mkdir(exist_ok=True)
        staged = {entry.key: _staged_path(staging, entry) for entry in plan.entries}
        missing = [
            entry
            for entry in plan.entries
            if entry.packed and not staged[entry.key].with_suffix(".json").is_file()
        ]
        tasks = [
            EncodeTask(
                source.place,
                source.identity,
                entry.layer,
                entry.projection,
                *entry.codec.dump(),
                recipe.seed,
                base,
                dense,
                recipe.clusters,
                str(recipe.calibration) if recipe.calibration else None,
                recipe.extended,
                device,
                str(staged[entry.key]),
                following.key if following else None,
            )
            for entry, following in with_next(missing)
        ]
        encoding = sum(source.group(task.layer, task.projection).nbytes for task in tasks)
        done += plan.bytes_before - encoding
        progress(done, total, f"{len(tasks)} groups to encode")
        for finished in run(encode_group, tasks):
            done += finished.bytes_before
            where = f"layer {finished.layer}, {finished.projection}"
            progress(done, total, f"encoded {where} ({finished.codec})")
        entries, groups, files = _assemble(source, plan, staged, partial, progress, done, total)
        bytes_after = sum((partial / name).stat().st_size for name in files)
        _write_descriptions(source, plan, groups, files, partial)
        progress(total, total, "written")
        shutil.rmtree(staging)
    seconds = time.monotonic() - started
    return Report(tuple(entries), plan.bytes_before, bytes_after, device, seconds)


def _sha256(path: Path) -> str:
    with open(path.expanduser(), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _staged_path(staging: Path, entry: PlanEntry) -> Path:
    return staging / f"{entry.layer:05d}-{entry.projection}.safetensors"


def _assemble(
    source: Checkpoint,
    plan: Plan,
    staged: dict[tuple[int, str], Path],
    partial: Path,
    progress: Progress,
    done: int,
    total: int,
) -> tuple[list[ReportEntry], list[PackedGroup], dict[str, dict[str, str]]]:
    """Write the shards; returns the report's entries, the groups, and checksums by file."""
    entries, groups = [], []
    checksums: dict[str, str] = {}
    promised: dict[str, tuple[int, str]] = {}  # tensor -> its group
    tensors: dict[str, TensorReader] = {
        name: source.tensors[name] for name in carried_specs(source, plan)
    }
    for entry in plan.entries:
        if not entry.packed:
            size = entry.bytes_before
            entries.append(ReportEntry(*entry.key, entry.codec.label, size, size, 0.0, 0.0, 0.0))
            continue
        note = read_json(staged[entry.key].with_suffix(".json"))
        entries.append(ReportEntry(**note["entry"]))
        group = source.group(*entry.key, plan.recipe.extended)
        groups.append(
            PackedGroup(
                layer=entry.layer,
                projection=entry.projection,
                prefix=group.prefix,
                codec=note["codec"],
                uses=note["uses"],
                lengths=note["lengths"],
                shape=group.shape,
                dtype=NAMES[group.dtype],
                experts=tuple(map(PackedSource.of, group.experts)),
                biases=tuple(map(PackedSource.of, group.biases)),
                stored=source.scheme.name if source.scheme and group.is_quantized else None,
                bases=note["bases"],
            )
        )
        tensors |= read_header(staged[entry.key])[0]
        promised |= dict.fromkeys(note["checksums"], entry.key)
        checksums |= note["checksums"]
    files: dict[str, dict[str, str]] = {}
    layout = shards({name: info.spec for name, info in tensors.items()})
    for name, specs in layout.items():

        def read(tensor: str, file: str = name) -> Iterable[bytes]:
            nonlocal done
            for chunk in tensors[tensor].raw():
                yield chunk
                done += len(chunk)
                progress(min(done, total), total, f"writing {file}")

        files[name] = write_file(partial / name, specs, read, METADATA)
        for tensor in specs.keys() & promised.keys():
            if files[name][tensor] != checksums[tensor]:
                staged[promised[tensor]].with_suffix(".json").unlink()
                raise OutputError(
                    f"{staged[promised[tensor]]} was damaged after it was written (the machine may "
                    "have gone down); resume, and this group is encoded again"
                )
    write_index(partial, layout)
    return entries, groups, files


def _write_descriptions(
    source: Checkpoint,
    plan: Plan,
    groups: list[PackedGroup],
    files: dict[str, dict[str, str]],
    partial: Path,
) -> None:
    """config.json, the manifest and the side files."""
    recipe = public_recipe(plan.recipe)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        layout=source.family,
        source=Source(
            identity=source.identity,
            bytes_total=source.store.bytes_total,
            files=dict(source.store.files),
            metadata={name: dict(values) for name, values in source.store.metadata.items()},
            index=dict(source.store.index_metadata),
            config=source.store.config_text,
        ),
        recipe=recipe,
        groups=tuple(groups),
        checksums={name: value for sums in files.values() for name, value in sums.items()},
    )
    copy_files(source.side_files(), partial)
    quantization = {"quant_method": QUANT_METHOD, "format_version": FORMAT_VERSION, **recipe}
    if source.config.get("quantization_config"):
        quantization["original"] = source.config["quantization_config"]
    write_json(partial / "config.json", source.config | {"quantization_config": quantization})
    write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
