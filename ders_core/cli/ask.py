"""The command `ask`: what an original and its compressed form say to one prompt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ders_core.cli.console import STARTING, print_json, print_line, print_table, progress_bar
from ders_core.cli.options import DeviceOption, DtypeOption, JsonFlag, TrustOption
from ders_core.pipeline.replies import MOST_TEMPERATURE, MOST_TOKENS, Replies, Reply
from ders_core.units import number_text, share_text, visible

UNDERLINED, ENDED = "\x1b[4m", "\x1b[0m"


def ask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a compressed model")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="what both are asked")],
    reference: Annotated[
        str, typer.Option("--reference", metavar="CKPT", help="the original of the model")
    ],
    max_tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="the longest reply, in tokens")
    ] = 64,
    temperature: Annotated[
        float,
        typer.Option(
            min=0,
            max=MOST_TEMPERATURE,
            help="0: the most likely token each time; else by chance, the same for both",
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="of chance")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="write the prompt by the model's chat template")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
    as_json: JsonFlag = False,
) -> None:
    """What both say to a prompt, with the tokens marked in whose place the other would say another
    one."""
    with progress_bar("ask", hidden=as_json) as progress:
        progress(0, 0, STARTING)
        from ders_core.compute.precision import parse_dtype
        from ders_core.evaluate import compare_replies

        replies = compare_replies(
            model,
            reference,
            prompt,
            device=device,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            chat=chat,
            dtype=parse_dtype(dtype),
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    if as_json:
        print_json(replies.to_dict())
        return
    for name, reply in (("original", replies.original), ("compressed", replies.compressed)):
        print(f"{name}:\n{_marked(reply)}\n")
    print_line(replies.sentence)
    _print_differences(replies)


def _marked(reply: Reply) -> str:
    """The text with marks around tokens in whose place the other model would say another one."""
    begin, end = (UNDERLINED, ENDED) if sys.stdout.isatty() else ("⟦", "⟧")
    return "".join(
        _shown(token.text) if token.other is None else f"{begin}{_shown(token.text)}{end}"
        for token in reply.tokens
    )


def _shown(text: str) -> str:
    """Lines stay lines; other controls are escaped, so that a reply cannot command a terminal."""
    return "\n".join(map(visible, text.split("\n")))


def _print_differences(replies: Replies) -> None:
    """A row for each marked token of the original's reply."""
    rows = [
        [
            repr(visible(token.text)),
            repr(visible(token.other)),
            "",
            str(number),
            share_text(token.chance),
            share_text(token.other_chance),
            number_text(token.kl),
        ]
        for number, token in enumerate(replies.original.tokens, start=1)
        if token.other is not None
    ]
    if rows:
        print("\nalong the original's reply")
        columns = ["original", "compressed", "", "token", "original's chance", "chance", "KL"]
        print_table(columns, rows)
