"""The command that turns a budget into a recipe: tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ders_core.cli.console import STARTING, print_json, print_line, print_table, progress_bar
from ders_core.cli.options import (
    CheckpointArg,
    DeviceOption,
    FriendlyOption,
    JsonFlag,
    TrustOption,
)
from ders_core.cli.series import print_series, series_places, write_page
from ders_core.errors import RecipeError
from ders_core.units import bytes_text, listed, number_text, share_text

if TYPE_CHECKING:
    from ders_core.tune import Tuned
    from ders_core.tune.measured_series import Series

RECIPE_BYTES = 1 << 16
"""Of a recipe, with room to spare."""


def tune(
    checkpoint: CheckpointArg,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="RECIPE", help="a new YAML file")
    ],
    budget: Annotated[
        str | None,
        typer.Option(
            help="a share such as 40%, bytes such as 6GB, bits a weight of an expert such as "
            "2.5bits, or bytes read a token such as 900MB/token"
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", help="instead of a budget: nats a token, with the least bytes"),
    ] = None,
    max_rise: Annotated[
        str | None,
        typer.Option("--max-rise", help="instead of a budget: of the perplexity, such as 1%"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", metavar="FILE", help="of ders calibrate --gradients --others"
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="PATH",
            help="instead of a calibration: text to make one with, beside the recipe; may be "
            "repeated",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="of the text, at most")] = 12288,
    friendly: FriendlyOption = False,
    per_expert: Annotated[
        bool, typer.Option("--per-expert", help="choose for each expert, not for each group")
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="LAYERS", help="layers that stay as they are: 0,5-7"),
    ] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option("--forbid", metavar="CODEC", help="a codec not to use; may be repeated"),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            "--pin",
            metavar="LAYERS=CODEC",
            help="the codec of deltas in these layers: 0,5-7=quantized; may be repeated",
        ),
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            "--floor",
            metavar="LAYERS=BITS",
            help="bits a weight that matrices of these layers take at least; may be repeated",
        ),
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(
            "--pareto",
            metavar="FILE.html",
            help="measure a series of sizes too, and draw it in a new file; what was measured is "
            "kept beside it",
        ),
    ] = None,
    heldout: Annotated[
        list[str] | None,
        typer.Option(
            "--heldout",
            metavar="[NAME=]PATH",
            help="for --pareto: text to measure on, which the calibration never saw; may be "
            "repeated",
        ),
    ] = None,
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Find the recipe that loses least within a budget, or the smallest within a loss.

    Writes RECIPE; ders compress --recipe RECIPE packs by it.
    """
    from ders_core.files.named_texts import parse_named
    from ders_core.files.output import new_file, new_target
    from ders_core.files.writer import write_text
    from ders_core.packed.open import open_checkpoint
    from ders_core.tune.constraints import check_selecting
    from ders_core.tune.demand import check_known, constraints_of, demanded_bound
    from ders_core.tune.units import units_of

    bound = demanded_bound(budget, max_kl, max_rise)
    check_known(calibration, text)
    constraints = constraints_of(keep, forbid or (), pin or (), floor or ())
    source = open_checkpoint(checkpoint)
    check_selecting(constraints, units_of(source))
    target = new_target(output)
    if (pareto is None) != (not heldout):
        raise RecipeError("--pareto and --heldout go together: a series is measured on other text")
    places = None if pareto is None else series_places(pareto, target)
    measured_on = parse_named(heldout) if heldout else ()
    found: Series | None = None
    with progress_bar("tune", hidden=as_json) as progress:
        progress(0, 0, STARTING)
        from ders_core.compute.device import resolve_device
        from ders_core.tune.measuring import Setting
        from ders_core.tune.unseen import check_unseen

        where = resolve_device(device).type
        setting = Setting(measured_on, device=where, trust_remote_code=trust_remote_code)
        if heldout:  # what is wrong with it is told before hours of work, not after them
            from ders_core.evaluate.evaluator import text_domains

            text_domains(source.path, measured_on, trust_remote_code=trust_remote_code)
        if calibration is None:
            from ders_core.calibrate import calibrate, has_room_for_each

            calibration = target.with_name(f"{target.stem}.calibration.safetensors")
            calibrate(
                checkpoint,
                calibration,
                text=text or [],
                device=device,
                max_tokens=max_tokens,
                gradients=True,
                others=True,
                each_expert=has_room_for_each(source),
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
        if heldout:
            check_unseen(source, calibration, setting)
        from ders_core.tune import tune as run_tune

        tuned = run_tune(
            source,
            bound,
            calibration,
            constraints=constraints,
            friendly=friendly,
            per_expert=per_expert,
            name=target.stem[:80],
            progress=progress,
        )
        with new_file(target, needs=RECIPE_BYTES) as aside:
            write_text(aside, tuned.recipe.to_yaml())
        if places is not None:
            from ders_core.tune.series import series

            page, trials = places
            found = series(
                source,
                tuned.scores,
                calibration,
                trials,
                setting,
                constraints=constraints,
                friendly=friendly,
                progress=progress,
            )
            write_page(page, found, source)
    if as_json:
        series_fields = {} if found is None else {"series": found.to_dict()}
        print_json(tuned.to_dict() | series_fields)
        return
    _print(tuned, target)
    if found is not None:
        print_series(found)
        print_line(f"written: {pareto}")


def _print(tuned: Tuned, target: Path) -> None:
    allocation, told, scores = tuned.allocation, tuned.told, tuned.scores
    chosen = [(each.scored, each.candidate) for each in allocation.chosen]
    print_table(
        ["what", "codec", "form", "bits", "predicted KL", "error"],
        [
            [
                scored.unit.label,
                candidate.codec.label,
                candidate.codec.name,
                f"{scored.bits(candidate):.2f}",
                number_text(candidate.noise, 2),
                share_text(candidate.error),
            ]
            for scored, candidate in chosen
            if candidate is not None
        ],
    )
    print_line(
        "bits: of a weight; predicted KL: what its errors cost, in nats a token; error: of weights"
    )
    for rare in scores.rare:
        print_line(f"note: {rare.sentence}")
    if scores.unmeasured:
        names = listed(scores.unmeasured)
        print_line(f"note: not measured by the calibration, so kept without loss: {names}")
    share = share_text(told.bytes_after / scores.bytes_total)
    print_line(f"budget: {allocation.bound.label}")
    print_line(f"about {bytes_text(told.bytes_after)} ({share} of original)")
    if told.outlook.text:
        print_line(told.outlook.text)
    print_line(
        f"predicted by the scores: {number_text(allocation.predicted_kl)} nats a token; losses add "
        f"up to at most {share_text(allocation.gap)} above the least sum that these forms allow"
    )
    if tuned.one_knob is not None:
        knob = tuned.one_knob
        print_line(
            f"one knob for all in {bytes_text(knob.nbytes)}: {number_text(knob.predicted_kl)} nats "
            "a token"
        )
    print_line(f"written: {target}")
