"""Compress: open, plan, encode each group, write the packed checkpoint.

Each group is encoded by a separate task and written to the weight files inside the unfinished
output, each tensor once: to the place that it has beforehand, or, if its length depends on the
data, behind those of the groups before (`ders_core.pipeline.staging`). An interrupted run continues
from the finished groups. Then what is carried is written (`ders_core.pipeline.last_writes`). The
bytes depend on the checkpoint, the recipe and the device alone: each operation computes on one
thread, whatever executes a task and however many experts of it are encoded side by side.

The result never mixes two versions of the source: staged groups know the weights that they were
encoded from, every task reads the files that this process opened, and all files that were read are
looked at again at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from ders_core.checkpoint import Checkpoint, ExpertGroup, MatrixStack, OtherTensor
from ders_core.checkpoint.quantized import Scheme
from ders_core.compute.buffers import memory_is_reused
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.compute.tasks import TaskRunner, one_by_one, with_next
from ders_core.errors import CheckpointError
from ders_core.files.address import hub_name
from ders_core.files.checksum import file_checksum
from ders_core.files.content import headers_hash
from ders_core.files.inputs import check_inputs, held_files, unchanged_inputs
from ders_core.files.output import bytes_below, check_room, new_target, output_directory
from ders_core.files.side_files import SideFile, local_bytes
from ders_core.files.tensor import FileTensor
from ders_core.packed.manifest import FORMAT_VERSION, Encoded, Source, public_recipe
from ders_core.packed.open import open_checkpoint
from ders_core.packed.stacks import PackedGroup, PackedSource, PackedTensor
from ders_core.packed.writer import PackedDescription, finish_packed
from ders_core.pipeline.budget import missed, settle
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.encode import CheckpointRef, EncodeTask, encode
from ders_core.pipeline.last_writes import complete
from ders_core.pipeline.next_base import bases_ahead
from ders_core.pipeline.own_files import bytes_of
from ders_core.pipeline.plan import (
    Key,
    Plan,
    PlanEntry,
    arrangement,
    carried_specs,
    resolve,
    specs_of,
    stack_of,
)
from ders_core.pipeline.predicted import GroupCost, predicted_kl, removal_costs
from ders_core.pipeline.recipe_files import check_files
from ders_core.pipeline.renewal import outdated
from ders_core.pipeline.report import OtherReport, Report, ReportEntry
from ders_core.pipeline.staged_group import StagedGroup
from ders_core.pipeline.staging import Staging
from ders_core.recipe import Recipe


@unchanged_inputs()
@memory_is_reused()
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
    interrupted run of the same checkpoint and recipe; groups whose weights have changed since are
    encoded again. runner: executes the tasks, one for each group. progress counts bytes checked,
    read for encoding, and written. A budget is settled first (`ders_core.pipeline.budget`); the
    report says if it is missed.
    Raises DersError and its children, also if a file is written while it is read. Then there is no
    `out`, and `<out>.partial` keeps the groups that are finished.
    """
    started = time.monotonic()
    new_target(out, resume=resume)
    source = open_checkpoint(checkpoint)
    budget = recipe.budget
    recipe = settle(recipe, source, progress=progress)
    plan = resolve(recipe, source)
    arranged, carried = arrangement(source, plan), carried_specs(source, plan)
    checked = source.packed_bytes or 0
    meter = Meter(checked + plan.bytes_before + bytes_of(carried), progress)
    check_files(recipe, source, lambda nbytes, message: meter.report(message))
    specs = ((name, tensor.spec) for name, tensor in source.tensors.items())
    work = {
        "format_version": FORMAT_VERSION,
        "checkpoint": headers_hash(source.config, specs),  # staged groups know their content
        "dense": recipe.base.identity(),  # of what any base reads; the key is older than that
        "calibration": _sha256(recipe.calibration) if recipe.calibration else None,
        "recipe": public_recipe(recipe),
        "device": device,
    }
    beside = source.beside  # before there is an output, which may lie beside the model too
    needs = plan.bytes_after + arranged.most_copied + local_bytes(beside.files)
    with output_directory(out, work=work, resume=resume, needs=needs) as partial:
        source.store.check(meter.advance)
        meter.done = checked  # bytes of files, so of headers too
        staging, run = Staging(partial, arranged), uuid4().hex
        if staging.damaged:
            meter.report(
                f"{staging.damaged} groups are not as they were written: to be encoded again"
            )
        renewed = _discard_outdated(source, plan, staging, meter)
        if resume:  # without what is discarded
            check_room(partial.parent, needs - bytes_below(partial))
        staging.stage_behind_gaps()
        _encode_groups(source, plan, staging, device, run, runner, meter)
        groups = staging.read(plan.keys)
        if outdated(source, groups, recipe.extended, meter):  # some by a process that saw others
            check_inputs()
            raise CheckpointError(
                f"{source.path} was written while it was read; wait until nothing writes to it, "
                "then resume"
            )
        description = _description(source, plan, groups, beside.files)
        readers = {name: source.tensors[name] for name in carried}
        files, checksums = complete(staging, readers, groups, run, meter)
        written = finish_packed(partial, description, files, checksums)
        meter.finish("written")
    entries, others = _reports(plan, groups)
    seconds, kl = time.monotonic() - started, _predicted(recipe, entries, others)
    return Report(
        entries,
        plan.bytes_before,
        written.bytes_total,
        device,
        seconds,
        beside.left_aside,
        renewed,
        kl,
        beside.linked_out,
        others,
        missed(budget, plan.bytes_before, written.bytes_total, kl) if budget is not None else "",
    )


def _predicted(
    recipe: Recipe, entries: Sequence[ReportEntry], others: Sequence[OtherReport]
) -> float | None:
    if recipe.calibration is None:
        return None
    encoded = [entry for entry in entries if entry.rel_error_weight]
    costs = [
        GroupCost(
            (entry.layer, entry.projection),
            entry.base,
            entry.effective_gain,
            entry.noise_cost,
            entry.rel_error_output,
            entry.router_noise,
        )
        for entry in encoded
        if entry.effective_gain is not None
    ]
    if len(costs) < len(encoded):  # resumed: an earlier version encoded some of them
        return None
    of_others = [other.costs for other in others]
    return predicted_kl(Calibration.open(recipe.calibration), costs, of_others)


def _sha256(path: Path) -> str:
    return file_checksum(path.expanduser())


def _discard_outdated(source: Checkpoint, plan: Plan, staging: Staging, meter: Meter) -> int:
    """Forget the staged groups whose weights have changed; returns how many there were."""
    keys = [key for key in plan.keys if staging.holds(key)]
    staged = staging.read(keys)
    changed = outdated(source, staged, plan.recipe.extended, meter)
    for key in changed:
        staged[key].discard()
    if changed:
        meter.report(f"{len(changed)} groups have other weights by now: to be encoded again")
    return len(changed)


def _encode_groups(
    source: Checkpoint,
    plan: Plan,
    staging: Staging,
    device: str,
    run: str,
    runner: TaskRunner,
    meter: Meter,
) -> None:
    """Encode every group that is to be packed and is not encoded yet."""
    missing = [key for key in plan.keys if not staging.holds(key)]
    calibration = plan.recipe.calibration and Calibration.open(plan.recipe.calibration)
    encoded = [entry.key for entry in plan.entries if not entry.codec.keeps]
    removal = removal_costs(calibration, encoded) if calibration else {}
    held = held_files()
    tasks = [
        EncodeTask(
            source=CheckpointRef(source.place, source.identity),
            recipe=plan.recipe,
            key=key,
            device=device,
            staged=str(staging.file(key)),
            places=_places(source, plan, key, staging),
            behind=staging.behind(key),
            run=run,
            ahead=following,
            is_first=key == missing[0],  # of the others, each is read ahead by one before
            groups=len(encoded),
            removal=removal.get(key, ()) if not isinstance(key, str) else (),
            held=held,
        )
        for key, following in with_next(missing)
    ]
    encoding = sum(source.stack(task.key).nbytes for task in tasks)
    others = sum(isinstance(key, str) for key in missing)
    what = f"{len(missing) - others} groups" + (f" and {others} other tensors" if others else "")
    meter.at(meter.done + plan.bytes_before - encoding, f"{what} to encode")
    with bases_ahead():
        for report in runner(encode, tasks):
            meter.advance(report.bytes_before, f"encoded {report.title} ({report.codec})")


def _places(source: Checkpoint, plan: Plan, key: Key, staging: Staging) -> dict[str, FileTensor]:
    """Where those tensors of a group or another tensor go whose places are known."""
    names = specs_of(source, plan, key)
    return {name: staging.places[name] for name in names if name in staging.places}


def _description(
    source: Checkpoint,
    plan: Plan,
    staged: Mapping[Key, StagedGroup],
    side_files: Sequence[SideFile],
) -> PackedDescription:
    """What the output has beside its weight files."""
    return PackedDescription(
        groups=[
            _packed_group(source.group(*key, plan.recipe.extended), group, source.scheme)
            for key, group in staged.items()
            if not isinstance(key, str)
        ],
        others=[
            _packed_tensor(stack_of(source, plan.recipe, key), group)
            for key, group in staged.items()
            if isinstance(key, str)
        ],
        encoded={source.stack(key).prefix: _measured(group) for key, group in staged.items()},
        source=_source(source),
        layout=source.family,
        config=source.config,
        recipe=plan.recipe,
        side_files=side_files,
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
        dtype=group.dtype.name,
        experts=tuple(map(PackedSource.of, group.experts)),
        biases=tuple(map(PackedSource.of, group.biases)),
        stored=scheme.name if scheme and group.is_quantized else None,
        bases=staged.bases,
        base_codec=staged.base_codec,
        base_lengths=dict(staged.base_lengths),
        without_base=staged.without_base,
    )


def _packed_tensor(stack: MatrixStack, staged: StagedGroup) -> PackedTensor:
    """What the manifest says of a tensor outside the experts."""
    assert isinstance(stack, OtherTensor)
    return PackedTensor(
        name=stack.name,
        codec=staged.codec,
        lengths=dict(staged.lengths),
        shape=stack.info.shape,
        pieces=stack.shape[0],
        dtype=stack.dtype.name,
    )


def _measured(staged: StagedGroup) -> Encoded:
    report = staged.report
    of_delta = report.rel_error_weight
    if isinstance(report, ReportEntry):
        of_delta = report.rel_error_delta
    return Encoded.of(staged.sha256, of_delta, report.rel_error_weight)


def _source(checkpoint: Checkpoint) -> Source:
    """What the manifest says of the checkpoint that is packed."""
    store = checkpoint.store
    return Source(
        identity=store.identity,
        bytes_total=store.bytes_total,
        files=dict(store.files),
        metadata={
            name: None if values is None else dict(values)
            for name, values in store.metadata.items()
        },
        index=dict(store.index_metadata),
        config=store.config_text,
    )


def _reports(
    plan: Plan, staged: Mapping[Key, StagedGroup]
) -> tuple[tuple[ReportEntry, ...], tuple[OtherReport, ...]]:
    """One entry a group, in the plan's order, and one for each other tensor that is coded; a group
    that stays as it is has no error."""
    of_keys = {key: group.report for key, group in staged.items()}
    entries = tuple(of_keys.get(entry.key) or _unchanged(entry) for entry in plan.entries)
    groups = tuple(entry for entry in entries if isinstance(entry, ReportEntry))
    return groups, tuple(each for each in of_keys.values() if isinstance(each, OtherReport))


def _unchanged(entry: PlanEntry) -> ReportEntry:
    nbytes = entry.bytes_before
    return ReportEntry(
        *entry.key,
        entry.codec.label,
        nbytes,
        nbytes,
        0.0,
        0.0,
        0.0,
        gain=1.0,
        noise=0.0,
        effective_gain=1.0,
    )
