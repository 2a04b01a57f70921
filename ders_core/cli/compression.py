"""The commands that pack a checkpoint and bring it back: plan, compress, verify, synthesize."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ders_core.cli.console import print_json, print_line, print_links, print_table, progress_bar
from ders_core.cli.options import (
    CheckpointArg,
    DeviceOption,
    JsonFlag,
    OutArg,
    PackedArg,
    RecipeOption,
    SchedulerOption,
    WrittenDtypeOption,
)
from ders_core.cli.plan_tables import print_tables
from ders_core.errors import CheckpointError, RecipeError
from ders_core.units import bytes_text, listed, number_text, share_text

if TYPE_CHECKING:
    from ders_core.checkpoint import Checkpoint
    from ders_core.pipeline.budget import Settled
    from ders_core.pipeline.forecast import Forecast
    from ders_core.pipeline.plan import Plan
    from ders_core.recipe import Recipe

WORTH_TELLING = 0.005
"""Share of an error that is rounding."""

NOT_COMPARED = (
    "whether the codec lossless would take less depends on the weights, which --predict samples"
)
"""Of a plan that was made of headers alone."""

SETTLED_BYTES = 1 << 14
"""Of a recipe, with room to spare."""


def plan(
    checkpoint: CheckpointArg,
    recipe: RecipeOption,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="encode a sample, and tell bytes, gain, noise and KL"),
    ] = False,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="encode all rows and experts in place of a sample"),
    ] = False,
    settle: Annotated[
        Path | None,
        typer.Option("--settle", help="write the rules that a budget becomes to this new file"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Predicted bytes of a recipe, group by group; nothing is compressed."""
    from ders_core.packed.open import open_checkpoint
    from ders_core.pipeline.plan import resolve
    from ders_core.pipeline.recipe_files import check_files
    from ders_core.recipe import load_recipe

    chosen = load_recipe(recipe)
    source = open_checkpoint(checkpoint)
    knob, foretold = dict[str, float](), None
    with_lossless = predict or not (whole or as_json)
    if chosen.budget is not None:
        found = _settled(chosen, source, settle, hidden=as_json, with_lossless=with_lossless)
        planned, knob, foretold = found.plan, {"knob": found.knob}, found.told
    elif settle is not None:
        raise RecipeError(f"{chosen.name} has no budget that could be settled; leave --settle out")
    else:
        planned = resolve(chosen, source)
        check_files(chosen, source)  # refused here rather than when the run starts
    is_enough = foretold is not None and not whole  # losses are of a sample, also of exact bytes
    if not is_enough and (predict or whole or knob):
        from ders_core.pipeline.forecast import forecast
        from ders_core.pipeline.sampling import LARGER, USUAL, Extent

        extent = LARGER if knob else USUAL
        extent = Extent.of_all(source) if whole else extent
        with progress_bar("predict") as progress:
            foretold = forecast(
                planned,
                source,
                progress=progress,
                extent=extent,
                with_lossless=with_lossless,
            )
    how = "" if whole else ", by a sample (--whole tells the last byte)"
    if as_json:
        if foretold is not None and (predict or whole):
            print_json({**knob, **foretold.to_dict()})
        else:
            print_json(planned.to_dict() | _of_budget(planned, foretold, knob))
        return
    print_tables(planned, foretold)
    for remark in planned.remarks:
        print_line(f"note: {remark}")
    if foretold is not None:
        _print_outlook(planned, foretold, how)
        return
    bound, how = "", ""
    if not planned.exact:
        bound, how = "at most ", "; --predict tells about how much, --whole the last byte"
    print_line(
        f"weight files: {bytes_text(planned.bytes_before)} → {bound}"
        f"{bytes_text(planned.bytes_after)} ({share_text(planned.ratio)} of original{how})"
    )
    if planned.loses:
        print_line(f"note: {NOT_COMPARED}")


def _settled(
    recipe: Recipe, source: Checkpoint, file: Path | None, *, hidden: bool, with_lossless: bool
) -> Settled:
    """The recipe with rules in the place of its budget, and its plan; written to a file if there is
    one. hidden: nothing is printed. with_lossless: as of `settled`."""
    from ders_core.files.output import new_file
    from ders_core.files.writer import write_text
    from ders_core.pipeline.budget import settled

    budget = recipe.budget
    assert budget is not None, "asked only of such recipes"
    place = nullcontext() if file is None else new_file(file, needs=SETTLED_BYTES)
    with place as aside:
        with progress_bar("budget", hidden=hidden) as progress:
            result = settled(recipe, budget, source, progress=progress, with_lossless=with_lossless)
        if aside is not None:
            write_text(aside, result.recipe.to_yaml())
    if not hidden:
        found = "" if budget.knob is not None else f": knob {number_text(result.knob, 4)}"
        print_line(f"budget of {budget.label}{found}")
    return result


def _of_budget(
    planned: Plan, foretold: Forecast | None, knob: Mapping[str, float]
) -> dict[str, Any]:
    """What JSON tells of a budget: knob, KL, and bytes as foretold, where the plan has bounds."""
    if foretold is None:
        return {}
    return {
        **knob,
        "bytes_after": foretold.bytes_after,
        "ratio": foretold.bytes_after / planned.bytes_before,
        "exact": foretold.exact,
        "predicted_kl": foretold.predicted_kl,
    }


def _print_outlook(planned: Plan, foretold: Forecast, how: str) -> None:
    """What is foretold of the whole. how: what is said of bytes that are not exact."""
    from ders_core.pipeline.without_loss import lossless_note

    share = share_text(foretold.bytes_after / planned.bytes_before)
    before, told = bytes_text(planned.bytes_before), foretold.bytes_after
    if foretold.exact:
        after = f"{bytes_text(told)}, exactly {told:,} bytes"
    else:
        after = f"about {bytes_text(told, 2)}{how}"
    print_line(f"weight files: {before} → {after} ({share} of original)")
    if foretold.outlook.text:
        print_line(foretold.outlook.text)
    if note := lossless_note(planned, foretold):
        print_line(f"note: {note}")


def compress(
    checkpoint: CheckpointArg,
    out: OutArg,
    recipe: RecipeOption,
    device: DeviceOption = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="threads; by default one per core")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted run")] = False,
    scheduler: SchedulerOption = None,
) -> None:
    """Write the packed form of a checkpoint."""
    from ders_core.compute.device import resolve_device
    from ders_core.jobs import Engine
    from ders_core.pipeline.compress import compress as run_compress
    from ders_core.pipeline.quality import ROUNDING
    from ders_core.recipe import load_recipe

    where = resolve_device(device).type
    loaded = load_recipe(recipe)
    with (
        progress_bar("compress") as progress,
        Engine(workers=workers, scheduler=scheduler, device=where) as engine,
    ):
        report = run_compress(
            checkpoint,
            out,
            loaded,
            device=where,
            resume=resume,
            runner=engine.run,
            progress=progress,
        )
    for remark in report.remarks:
        print_line(f"note: {remark}")
    if report.renewed:
        print_line(
            f"groups of the interrupted run that were encoded again, because their weights in "
            f"{checkpoint} have changed since: {report.renewed}"
        )
    print_line(
        f"{out}: {bytes_text(report.bytes_before)} → {bytes_text(report.bytes_after)} "
        f"({share_text(report.ratio)} of original) in {report.seconds:.1f} s on {report.device}"
    )
    if report.outlook.text:
        print_line(report.outlook.text)
    if report.rounding is not None and abs(report.rounding) >= WORTH_TELLING:
        print_line(
            f"rounding to the checkpoint's dtype: {ROUNDING.text(report.rounding)} of the error "
            "(mean over the replaced groups), which loading in float32 leaves out"
        )
    if report.left_aside:
        print_line(f"left aside, as no part of the model: {listed(report.left_aside)}")
    print_links(report.linked_out)
    if report.missed:
        raise RecipeError(f"{out} is whole and misses its budget: {report.missed}")


def verify(
    packed: PackedArg,
    against: Annotated[
        str | None, typer.Option("--against", metavar="CKPT", help="its original: compare with it")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every checksum and the config; with --against, compare every tensor and every error."""
    from ders_core.pipeline.quality import GAIN, NOISE, WEIGHT_ERROR
    from ders_core.pipeline.verify import verify as run_verify

    with progress_bar("verify", hidden=as_json) as progress:
        verification = run_verify(packed, against, progress=progress)
    if as_json:
        print_json(verification.to_dict())
    else:
        if verification.groups:
            print_table(
                ["layer", "projection", "", GAIN.short, NOISE.short, WEIGHT_ERROR.short],
                [
                    [
                        str(group.layer),
                        group.projection,
                        "",
                        GAIN.text(group.gain),
                        NOISE.text(group.noise),
                        WEIGHT_ERROR.text(group.rel_error_weight),
                    ]
                    for group in verification.groups
                ],
            )
        if verification.others:
            print_table(
                ["other tensors", WEIGHT_ERROR.short],
                [
                    [other.name, WEIGHT_ERROR.text(other.rel_error_weight)]
                    for other in verification.others
                ],
            )
        if verification.ok:
            print_line(f"{packed}: all {verification.tensors} tensors are as they were written")
    if not verification.ok:
        first, *others = verification.problems
        raise CheckpointError(first + (f" (and {len(others)} more)" if others else ""))


def synthesize(packed: PackedArg, out: OutArg, dtype: WrittenDtypeOption = "auto") -> None:
    """Bring a packed checkpoint back to its original layout."""
    from ders_core.files.store import TensorStore
    from ders_core.pipeline.synthesize import synthesize as run_synthesize

    with progress_bar("synthesize") as progress:
        run_synthesize(packed, out, dtype=dtype, hashes=False, progress=progress)
    print_line(f"{out}: {len(TensorStore.open(out).tensors)} tensors written")
    print_links(TensorStore.open(packed).beside.linked_out)
