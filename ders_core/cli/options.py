"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CheckpointArg = Annotated[
    str,
    typer.Argument(
        metavar="CKPT", help="a model directory, packed or not, hf://owner/repo, or another address"
    ),
]
PackedArg = Annotated[Path, typer.Argument(metavar="PACKED", help="a packed DeRS directory")]
OutArg = Annotated[Path, typer.Argument(metavar="OUT", help="a new directory to write")]
TextOption = Annotated[
    list[Path],
    typer.Option(
        "--text",
        metavar="PATH",
        help="UTF-8 text, .jsonl of texts or chats, or a directory of them; may be repeated",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print JSON")]
RecipeOption = Annotated[str, typer.Option("--recipe", metavar="R", help="a YAML file or a preset")]
FriendlyOption = Annotated[
    bool,
    typer.Option("--hardware-friendly", help="only codes of one width, N:M patterns and low rank"),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="of the computation: auto, float32, bfloat16 or float16")
]
ExpertsOption = Annotated[
    str,
    typer.Option(
        "--experts",
        metavar="MODE",
        help="how a packed model holds its experts: synthesized (whole), cached (packed, the last "
        "used whole) or packed",
    ),
]
WrittenDtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="of the weights that are written, rounded once: auto (as they were), float32, "
        "bfloat16 or float16",
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="run code that comes with the model, with your rights"
    ),
]
WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", help="where jobs and runs are kept")
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="ADDR", help="a dask scheduler that you run: its workers compute"
    ),
]
