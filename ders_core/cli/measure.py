"""The commands that run a model on a text: eval, calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ders_core.cli.console import STARTING, print_json, print_line, print_table, progress_bar
from ders_core.cli.evaluation import json_if_tasks_fail, print_quality, print_tasks
from ders_core.cli.options import (
    CheckpointArg,
    DeviceOption,
    DtypeOption,
    ExpertsOption,
    JsonFlag,
    TextOption,
    TrustOption,
)
from ders_core.errors import EvaluationError
from ders_core.units import bytes_text, share_text


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model, packed or not")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="[NAME=]PATH",
            help="UTF-8 text, .jsonl of texts or chats, or a directory of them; may be repeated. "
            "Texts with names are measured apart too",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="TASK",
            help="also, or instead of a text: a task of lm-eval, such as arc_easy, or a task file "
            "(.yaml), which runs what it includes and the Python files that it names; may be "
            "repeated",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="with --tasks: questions of each, at most")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="CKPT", help="compare with this model")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_tokens: Annotated[int, typer.Option(min=2, help="stop after this many tokens")] = 8192,
    experts: ExpertsOption = "synthesized",
    trust_remote_code: TrustOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Perplexity; with --reference also KL with its interval, the tokens that changed most, top-1
    agreement and routing agreement. With --tasks what a model reaches on tasks of lm-eval."""
    from ders_core.files.named_texts import parse_named
    from ders_core.pipeline.quality import Quality
    from ders_core.pipeline.task_scores import TaskScore, parse_tasks
    from ders_core.runtime.modes import parse_mode

    mode = parse_mode(experts)
    if not text and not tasks:
        raise EvaluationError("nothing is asked; give a --text to measure on, or --tasks")
    if limit is not None and not tasks:
        raise typer.BadParameter("it belongs to --tasks", param_hint="--limit")
    named, asked = parse_named(text or ()), parse_tasks(tasks) if tasks else ()
    quality: Quality | None = None
    scores: tuple[TaskScore, ...] = ()
    with progress_bar("eval", hidden=as_json) as progress:
        progress(0, 0, STARTING)
        from ders_core.compute.precision import parse_dtype
        from ders_core.evaluate import evaluate as run_evaluate
        from ders_core.evaluate.tasks import check_tasks, evaluate_tasks

        check_tasks(asked, trust_remote_code=trust_remote_code)
        if text:
            quality = run_evaluate(
                model,
                reference,
                text=named,
                device=device,
                max_tokens=max_tokens,
                dtype=parse_dtype(dtype),
                trust_remote_code=trust_remote_code,
                mode=mode,
                progress=progress,
            )
    if quality and not as_json:
        print_quality(quality)  # now: it is not lost if tasks fail
    if asked:
        with (
            json_if_tasks_fail(quality if as_json else None),
            progress_bar("eval", hidden=as_json) as progress,
        ):
            scores = evaluate_tasks(
                model,
                asked,
                reference,
                limit=limit,
                device=device,
                dtype=parse_dtype(dtype),
                trust_remote_code=trust_remote_code,
                mode=mode,
                progress=progress,
            )
    if as_json:
        measured = quality.to_dict() if quality else {}
        tables = {"tasks": [score.model_dump(mode="json") for score in scores]} if scores else {}
        print_json(measured | tables)
    else:
        print_tasks(scores)


def calibrate(
    checkpoint: CheckpointArg,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="a new .safetensors file")
    ],
    text: TextOption,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="stop after this many tokens")] = 8192,
    window: Annotated[int, typer.Option(min=2, help="tokens of context")] = 512,
    gradients: Annotated[
        bool,
        typer.Option(
            "--gradients",
            help="measure also how much an error in each weight costs; takes several times as long",
        ),
    ] = False,
    others: Annotated[
        bool,
        typer.Option(
            "--others",
            help="measure also, with gradients, the matrices that are no experts': attention, "
            "dense FFNs, embeddings",
        ),
    ] = False,
    each_expert: Annotated[
        bool,
        typer.Option(
            "--each-expert",
            help="keep, with gradients, second moments of each expert's own inputs: a layer's "
            "moments again for each of its experts",
        ),
    ] = False,
    max_width: Annotated[
        int,
        typer.Option(
            "--max-width",
            min=0,
            help="of inputs wider than this keep the second moments' diagonal alone",
        ),
    ] = 8192,
    trust_remote_code: TrustOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure the experts' inputs and how often each expert is chosen; codecs use the result."""
    with progress_bar("calibrate", hidden=as_json) as progress:
        progress(0, 0, STARTING)
        from ders_core.calibrate import calibrate as run_calibrate
        from ders_core.compute.precision import parse_dtype

        calibration = run_calibrate(
            checkpoint,
            output,
            text=text,
            device=device,
            max_tokens=max_tokens,
            window=window,
            dtype=parse_dtype(dtype),
            gradients=gradients,
            others=others,
            each_expert=each_expert,
            max_width=max_width,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    shares = {layer: calibration.use(layer) for layer in calibration.layers}
    most = max(float(share.max()) for share in shares.values())
    least = min(float(share.min()) for share in shares.values())
    if as_json:
        counts = {"layers": calibration.layers, "tokens": calibration.tokens}
        shown = {
            "most_chosen": most,
            "least_chosen": least,
            "dtype": calibration.dtype,
            "gradients": calibration.has_gradients,
            "routers": calibration.has_routers,
            "bases": calibration.has_bases,
            "weighted": calibration.has_weighted,
            "each_expert": calibration.has_each,
            "others": len(calibration.others.names),
            "left_out": dict(calibration.notes.left_out),
            "bytes": calibration.path.stat().st_size,
        }
        print_json(counts | shown)
        return
    print_table(
        ["", ""],
        [
            ["layers", str(len(shares))],
            ["tokens", str(calibration.tokens)],
            ["most chosen expert", f"{share_text(most)} of its layer's choices"],
            ["least chosen expert", f"{share_text(least)} of its layer's choices"],
            ["computed in", calibration.dtype],
            ["gradients", _measured(calibration.has_gradients)],
            ["what tipped choices of experts cost", _measured(calibration.has_routers)],
            ["what errors of bases cost", _measured(calibration.has_bases)],
            ["inputs weighted by gradients", _measured(calibration.has_weighted)],
            ["inputs of each expert", _measured(calibration.has_each)],
            [
                "other matrices",
                f"{len(calibration.others.names)} measured" if others else "not measured",
            ],
            ["file", bytes_text(calibration.path.stat().st_size)],
        ],
    )
    for name, reason in calibration.notes.left_out.items():
        print_line(f"left out: {name}: {reason}")
    print_line(f"written: {output}")


def _measured(is_known: bool) -> str:
    return "measured" if is_known else "not measured"
