"""The command that proves what a tuning predicts: prove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ders_core.cli.console import STARTING, print_json, print_line, progress_bar
from ders_core.cli.options import (
    CheckpointArg,
    DeviceOption,
    FriendlyOption,
    JsonFlag,
    TrustOption,
)
from ders_core.cli.series import print_series, print_trials, write_page
from ders_core.errors import RecipeError

if TYPE_CHECKING:
    from ders_core.tune.prove import Proof


def prove(
    checkpoint: CheckpointArg,
    calibration: Annotated[
        Path,
        typer.Option(
            "--calibration", metavar="FILE", help="of ders calibrate --gradients --others"
        ),
    ],
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="[NAME=]PATH",
            help="text to measure on, which the calibration never saw; may be repeated",
        ),
    ],
    trials: Annotated[
        Path,
        typer.Option(
            "--trials", metavar="DIR", help="keeps what was measured; it is not measured again"
        ),
    ],
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="SIZE", help="40%, 6GB, 2.5bits or 900MB/token"),
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option("--max-kl", help="nats a token; the least bytes then")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.yaml", help="a new file for the best recipe"),
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(
            "--pareto",
            metavar="FILE.html",
            help="measure a series of sizes instead of one, and draw it in a new file",
        ),
    ] = None,
    friendly: FriendlyOption = False,
    device: DeviceOption = "auto",
    max_tokens: Annotated[int, typer.Option(min=2, help="measure on no more than these")] = 8192,
    trust_remote_code: TrustOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Tune by a calibration, measure the result and the best uniform recipes, and solve again.

    The best of all that was measured is kept, whatever it is.
    """
    from ders_core.files.output import new_file, new_target
    from ders_core.tune.bounds import Bound

    given = [budget is not None, max_kl is not None, pareto is not None]
    if sum(given) != 1:
        raise RecipeError("give one of --budget, --max-kl and --pareto")
    for file in (output, pareto):
        if file is not None:
            new_target(file)
    if pareto is not None and output is not None:
        raise RecipeError("--pareto measures many recipes; -o is for one, of --budget or --max-kl")
    bound = Bound.parse(budget) if budget is not None else None
    if max_kl is not None:
        bound = Bound("kl", max_kl)
    with progress_bar("prove", hidden=as_json) as progress:
        progress(0, 0, STARTING)
        from ders_core.compute.device import resolve_device
        from ders_core.files.named_texts import parse_named
        from ders_core.packed.open import open_checkpoint
        from ders_core.tune.measuring import Setting
        from ders_core.tune.scoring import score

        source = open_checkpoint(checkpoint)
        setting = Setting(
            parse_named(text),
            device=resolve_device(device).type,
            max_tokens=max_tokens,
            trust_remote_code=trust_remote_code,
        )
        scores = score(source, calibration, progress=progress)
        shared: dict[str, Any] = {"friendly": friendly, "progress": progress}
        work = (source, scores, calibration)
        if bound is None:
            from ders_core.tune.series import series

            found = series(*work, trials, setting, **shared)
        else:
            from ders_core.tune.prove import prove as run_prove

            proof = run_prove(*work, bound, trials, setting, **shared)
    if bound is None:
        assert pareto is not None, "one of the three is given"
        write_page(pareto, found, source)
        if as_json:
            print_json(found.to_dict())
        else:
            print_series(found)
        return
    if output is not None and proof.best is not None:
        with new_file(output) as aside:
            aside.write_text(proof.trials[proof.best].recipe, encoding="utf-8")
    _print_proof(proof, as_json)
    if proof.best is None:
        raise RecipeError(f"{proof.sentence}; give a larger budget")


def _print_proof(proof: Proof, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "bound": {"measure": proof.bound.measure, "most": proof.bound.most},
                "sentence": proof.sentence,
                "best": proof.best,
                "trials": [trial.model_dump(mode="json") for trial in proof.trials],
                "factors": dict(proof.factors),
                "remarks": list(proof.remarks),
            }
        )
        return
    print_trials(proof.trials)
    for remark in proof.remarks:
        print_line(f"note: {remark}")
    if proof.best is not None:
        print_line(proof.sentence)
