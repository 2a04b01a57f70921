"""The command that trains what is small in a packed checkpoint: repair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ders_core.cli.console import STARTING, print_json, print_line, print_table, progress_bar
from ders_core.cli.options import DeviceOption, JsonFlag, PackedArg, TextOption, TrustOption
from ders_core.units import bytes_text, number_text, share_text

if TYPE_CHECKING:
    from ders_core.repair import RepairResult


def repair(
    packed: PackedArg,
    original: Annotated[
        str, typer.Option("--original", metavar="CKPT", help="the checkpoint that was packed")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="a new directory to write")
    ],
    text: TextOption,
    heldout: Annotated[
        list[Path] | None,
        typer.Option(
            "--heldout",
            metavar="PATH",
            help="text to measure with; without it the last eighth of each --text is held out",
        ),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            "--train",
            metavar="WORDS",
            help="what is trained, such as scales,bases,norms; may be repeated "
            "[default: all that is small]",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="of training")] = 300,
    batch: Annotated[int, typer.Option(help="windows in a step")] = 8,
    window: Annotated[int, typer.Option(help="tokens of context")] = 256,
    rate: Annotated[
        float | None,
        typer.Option(
            help="learning rate, as a share of the size of each tensor's values "
            "[default: 0.003, or less: moves by chance may add 6 % to KL]"
        ),
    ] = None,
    heldout_tokens: Annotated[int, typer.Option(help="measure on no more than these")] = 16384,
    seed: Annotated[int, typer.Option(help="of the order of windows")] = 0,
    device: DeviceOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the last training checkpoint")
    ] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Train scales, bases, norms and what else is small towards the original; codes stay.

    OUT is written only if it is better on text that the training never saw.
    """
    from ders_core.repair.settings import RepairSettings

    fields = {
        "steps": steps,
        "batch": batch,
        "window": window,
        "rate": rate,
        "heldout_tokens": heldout_tokens,
        "seed": seed,
    }
    words = [word for option in train or () for word in option.replace(",", " ").split()]
    settings = RepairSettings.of(fields | ({"train": words} if train else {}))
    with progress_bar("repair", hidden=as_json) as progress:
        progress(0, 0, STARTING)
        from ders_core.repair import repair as run_repair

        result = run_repair(
            packed,
            original,
            output,
            text=text,
            heldout=heldout,
            settings=settings,
            device=device,
            resume=resume,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    if as_json:
        print_json(result.to_dict())
        return
    _print(result)


def _print(result: RepairResult) -> None:
    for note in (result.resumed, *result.left_out):
        if note:
            print_line(f"note: {note}")
    if result.repeated:
        print_line(
            f"note: {result.repeated} held-out windows were left out, because the training reads "
            "them too"
        )
    trained = ", ".join(f"{count:,} {word}" for word, count in result.trained.items())
    kl = [
        f"{number_text(each.mean, 4)} ({number_text(each.low)} to {number_text(each.high)})"
        for each in (result.kl_before, result.kl_after)
    ]
    print_table(
        ["", "before", "after"],
        [
            ["KL, nats a token (95 %)", *kl],
            [
                "top-1 agreement",
                *(_agreement(each.top1_agreement) for each in (result.before, result.after)),
            ],
            [
                "perplexity",
                *(number_text(each.perplexity, 4) for each in (result.before, result.after)),
            ],
        ],
    )
    original = result.before.reference_perplexity
    if original is not None:
        print_line(f"of the original: perplexity {number_text(original, 4)}")
    print_line(f"trained: {trained}; {result.steps} steps, {result.tokens:,} tokens")
    print_line(
        f"measured on {result.before.tokens:,} tokens that were not trained on; memory: about "
        f"{bytes_text(result.needed)}"
    )
    print_line(
        f"{result.out}: {bytes_text(result.bytes)}, in {result.seconds:.0f} s on {result.device}"
    )


def _agreement(share: float | None) -> str:
    return "not measured" if share is None else share_text(share)
