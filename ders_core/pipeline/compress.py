"""Compress: open, plan, encode each group, write the packed checkpoint.

Each group is encoded by a separate task and staged as one file inside the unfinished output; an
interrupted run continues from the staged groups. Then the shards are written from the staged files
and from the source, tensor by tensor. The bytes depend on the checkpoint, the recipe and the device
alone: a task computes on one thread, whatever executes it and however many run in parallel.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.checkpoint.quantized import Scheme
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.compute.tasks import TaskRunner, one_by_one, with_next
from ders_core.files.address import hub_name
from ders_core.files.checksum import file_checksum
from ders_core.files.output import output_directory
from ders_core.files.spec import NAMES
from ders_core.files.tensor import TensorReader
from ders_core.packed.manifest import (
    FORMAT_VERSION,
    PackedGroup,
    PackedSource,
    Source,
    public_recipe,
)
from ders_core.packed.open import open_checkpoint
from ders_core.packed.writer import PackedContents, write_packed
from ders_core.pipeline.encode import CheckpointRef, EncodeTask, encode_group
from ders_core.pipeline.plan import Plan, carried_specs, check_files, resolve
from ders_core.pipeline.report import Report, ReportEntry
from ders_core.pipeline.staging import Key, StagedGroup, Staging, check_against
from ders_core.recipe import Recipe


def compress(
    checkpoint: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    device: str = "cpu",
    resume: bool = False,
    runner: TaskRunner = one_by_one,
    progress: Progress = quiet,
) -> Report:
    """Write the packed form of `checkpoint`, a directory or an address, to the new directory `out`.

    A packed checkpoint is packed again from the original that it stands for; its checksums are
    checked first. device: where deltas are encoded, "cpu" or "cuda". resume: continue an
    interrupted run of the same checkpoint and recipe. runner: executes the tasks, one for each
    group. progress counts bytes checked, read for encoding, and written.
    Raises DersError and its children. Then there is no `out`, and `<out>.partial` keeps the groups
    that are finished.
    """
    started = time.monotonic()
    source = open_checkpoint(checkpoint)
    plan = resolve(recipe, source)
    check_files(recipe, source)
    work = {
        "format_version": FORMAT_VERSION,
        "checkpoint": source.identity,
        "dense": recipe.base.identity(),  # of what any base reads; the key is older than that
        "calibration": _sha256(recipe.calibration) if recipe.calibration else None,
        "recipe": public_recipe(recipe),
        "device": device,
    }
    checked = source.packed_bytes or 0
    meter = Meter(checked + plan.bytes_before + plan.bytes_after, progress)
    with output_directory(out, work=work, resume=resume, needs=2 * plan.bytes_after) as partial:
        source.store.check(meter.advance)
        meter.done = checked  # bytes of files, so of headers too
        staging = Staging(partial)
        _encode_groups(source, plan, staging, device, runner, meter)
        groups = staging.read(entry.key for entry in plan.entries if entry.packed)
        contents = _contents(source, plan, groups)
        check = check_against(groups.values())
        written = write_packed(partial, contents, advance=meter.advance, check=check)
        meter.finish("written")
        staging.remove()
    entries = _report_entries(plan, groups)
    seconds = time.monotonic() - started
    return Report(
        entries, plan.bytes_before, written.bytes_total, device, seconds, source.beside.left_aside
    )


def _sha256(path: Path) -> str:
    return file_checksum(path.expanduser())


def _encode_groups(
    source: Checkpoint,
    plan: Plan,
    staging: Staging,
    device: str,
    runner: TaskRunner,
    meter: Meter,
) -> None:
    """Stage every group that is to be packed and is not staged yet."""
    missing = [entry for entry in plan.entries if entry.packed and not staging.holds(entry.key)]
    tasks = [
        EncodeTask(
            source=CheckpointRef(source.place, source.identity),
            recipe=plan.recipe,
            key=entry.key,
            device=device,
            staged=str(staging.file(entry.key)),
            ahead=following.key if following else None,
        )
        for entry, following in with_next(missing)
    ]
    encoding = sum(source.group(*task.key).nbytes for task in tasks)
    meter.at(meter.done + plan.bytes_before - encoding, f"{len(tasks)} groups to encode")
    for entry in runner(encode_group, tasks):
        name = f"layer {entry.layer}, {entry.projection}"
        meter.advance(entry.bytes_before, f"encoded {name} ({entry.codec})")


def _contents(source: Checkpoint, plan: Plan, staged: Mapping[Key, StagedGroup]) -> PackedContents:
    """The tensors that stay as they are, then each staged group's."""
    tensors: dict[str, TensorReader] = {
        name: source.tensors[name] for name in carried_specs(source, plan)
    }
    for group in staged.values():
        tensors |= group.tensors
    return PackedContents(
        tensors=tensors,
        groups=[
            _packed_group(source.group(*key, plan.recipe.extended), group, source.scheme)
            for key, group in staged.items()
        ],
        source=_source(source),
        layout=source.family,
        config=source.config,
        recipe=plan.recipe,
        side_files=source.beside.files,
        hub_name=hub_name(source.place),
    )


def _packed_group(group: ExpertGroup, staged: StagedGroup, scheme: Scheme | None) -> PackedGroup:
    """What the manifest says of one group."""
    return PackedGroup(
        layer=group.layer,
        projection=group.projection,
        prefix=group.prefix,
        codec=staged.codec,
        uses=staged.uses,
        lengths=dict(staged.lengths),
        shape=group.shape,
        dtype=NAMES[group.dtype],
        experts=tuple(map(PackedSource.of, group.experts)),
        biases=tuple(map(PackedSource.of, group.biases)),
        stored=scheme.name if scheme and group.is_quantized else None,
        bases=staged.bases,
    )


def _source(checkpoint: Checkpoint) -> Source:
    """What the manifest says of the checkpoint that is packed."""
    store = checkpoint.store
    return Source(
        identity=store.identity,
        bytes_total=store.bytes_total,
        files=dict(store.files),
        metadata={name: dict(values) for name, values in store.metadata.items()},
        index=dict(store.index_metadata),
        config=store.config_text,
    )


def _report_entries(plan: Plan, staged: Mapping[Key, StagedGroup]) -> tuple[ReportEntry, ...]:
    """One entry a group, in the plan's order; a group that stays as it is has no error."""
    return tuple(
        staged[entry.key].report
        if entry.packed
        else ReportEntry(
            *entry.key, entry.codec.label, entry.bytes_before, entry.bytes_before, 0.0, 0.0, 0.0
        )
        for entry in plan.entries
    )
