"""The command that makes an MoE of a dense model: upcycle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ders_core.cli.console import (
    STARTING,
    print_json,
    print_line,
    print_links,
    print_table,
    progress_bar,
)
from ders_core.cli.options import DeviceOption, JsonFlag, OutArg
from ders_core.units import bytes_text, number_text


def upcycle(
    dense: Annotated[
        Path, typer.Argument(metavar="DENSE", help="a dense model, or PACKED with --continue")
    ],
    out: OutArg,
    config: Annotated[
        Path, typer.Option("--config", metavar="U.yaml", help="forms, data and training")
    ],
    device: DeviceOption = "auto",
    further: Annotated[
        bool,
        typer.Option("--continue", help="train further deltas on an upcycled checkpoint"),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the last training checkpoint")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a dense model into an MoE whose experts' deltas are light; OUT is packed.

    On several GPUs: torchrun --nproc-per-node N -m ders_core upcycle ..., or accelerate launch.
    """
    from ders_core.files.store import TensorStore
    from ders_core.upcycle import load_config

    chosen = load_config(config)
    with progress_bar("upcycle", hidden=as_json) as progress:
        progress(0, 0, STARTING)
        from ders_core.upcycle import upcycler as run

        start = run.upcycle_further if further else run.upcycle
        result = start(dense, out, chosen, device=device, resume=resume, progress=progress)
    if as_json:
        print_json(result.to_dict())
        return
    if result.resumed:
        print_line(f"note: {result.resumed}")
    rows = [
        ["forms", result.label],
        [
            "size on disk",
            f"{bytes_text(result.packed_bytes)} (as plain MoE "
            f"{bytes_text(result.moe_bytes)}, what went in {bytes_text(result.dense_bytes)})",
        ],
        ["trained", f"{result.trained:,} of {result.parameters:,} values"],
        [
            "largest difference of a logit at the start",
            number_text(result.start_difference, 2),
        ],
        ["peak memory", bytes_text(result.peak_memory)],
        ["computed in", result.precision],
    ]
    if result.perplexity is not None and result.dense_perplexity is not None:
        rows.insert(
            3,
            [
                "held-out perplexity",
                f"{number_text(result.dense_perplexity, 4)} before, "
                f"{number_text(result.perplexity, 4)} after",
            ],
        )
    print_table(["", ""], rows)
    print_line(f"{out}: {result.steps} steps in {result.seconds:.1f} s on {result.device}")
    print_links(TensorStore.open(dense).beside.linked_out)
