"""The commands of `ders`: their words and summaries, known before the modules that hold them.

`ders --help` and a command of another family need no more than a summary; a family's module, and
what it imports, is imported when a command of it is called.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from ders_core.files.few_collections import few_collections

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter


class Entry(NamedTuple):
    """module: of this package. function: the command in it. summary: the first paragraph of its
    docstring, on one line."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "info": Entry(
        "analysis",
        "info",
        "Family, layers, experts, bytes, the experts' share, and whether they share one start.",
    ),
    "analyze": Entry(
        "analysis",
        "analyze",
        "Similarity of experts, norms of deltas, and with --spectra their singular values.",
    ),
    "plan": Entry(
        "compression", "plan", "Predicted bytes of a recipe, group by group; nothing is compressed."
    ),
    "compress": Entry("compression", "compress", "Write the packed form of a checkpoint."),
    "verify": Entry(
        "compression",
        "verify",
        "Check every checksum and the config; with --against, compare every tensor and every "
        "error.",
    ),
    "synthesize": Entry(
        "compression", "synthesize", "Bring a packed checkpoint back to its original layout."
    ),
    "demo": Entry(
        "studio",
        "demo",
        "Unpack the demo: a small MoE, its dense parent, texts; or train one from nothing.",
    ),
    "worker": Entry(
        "studio",
        "worker",
        "Run a worker alone: it takes up the jobs of a workspace until it is stopped.",
    ),
    "app": Entry(
        "studio",
        "run_app",
        "Start the studio: the app and a worker, on this machine only; opens the browser.",
    ),
    "eval": Entry(
        "measure",
        "evaluate",
        "Perplexity; with --reference also KL with its interval, the tokens that changed most, "
        "top-1 agreement and routing agreement. With --tasks what a model reaches on tasks of "
        "lm-eval.",
    ),
    "calibrate": Entry(
        "measure",
        "calibrate",
        "Measure the experts' inputs and how often each expert is chosen; codecs use the result.",
    ),
    "ask": Entry(
        "ask",
        "ask",
        "What both say to a prompt, with the tokens marked in whose place the other would say "
        "another one.",
    ),
    "tune": Entry(
        "tune",
        "tune",
        "Find the recipe that loses least within a budget, or the smallest within a loss.",
    ),
    "prove": Entry(
        "prove",
        "prove",
        "Tune by a calibration, measure the result and the best uniform recipes, and solve again.",
    ),
    "pilot": Entry(
        "pilot",
        "pilot",
        "Try three safe sizes and an aggressive one, and write a report on which to decide.",
    ),
    "report": Entry(
        "report",
        "report",
        "An original and its packed forms on one page: sizes, what they cost, and what is alike.",
    ),
    "repair": Entry(
        "repair",
        "repair",
        "Train scales, bases, norms and what else is small towards the original; codes stay.",
    ),
    "export": Entry(
        "export",
        "export",
        "Write a packed checkpoint packed, in its original layout, or as a patch.",
    ),
    "push": Entry(
        "export",
        "push",
        "Push an exported directory to a model hub: huggingface.co, or what HF_ENDPOINT names.",
    ),
    "apply": Entry(
        "export",
        "apply",
        "Apply a patch to its base: OUT is the packed checkpoint that the patch was made from.",
    ),
    "rollback": Entry(
        "export",
        "rollback",
        "Bring back the base that a patch was applied to, from the patched checkpoint alone.",
    ),
    "upcycle": Entry(
        "upcycle",
        "upcycle",
        "Train a dense model into an MoE whose experts' deltas are light; OUT is packed.",
    ),
}
"""A command's word -> where it is, in the order of `ders --help`."""


class Commands(TyperGroup):
    """The commands in COMMANDS, each imported when it is asked for."""

    def list_commands(self, ctx: Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        with few_collections():  # what is imported stays
            module = import_module(f"{__package__}.{entry.module}")
        function = getattr(module, entry.function)
        alone = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        alone.command(cmd_name, short_help=entry.summary)(function)
        return get_command(alone)

    def resolve_command(
        self, ctx: Context, args: list[str]
    ) -> tuple[str | None, Command | None, list[str]]:
        """Name the words that are like an unknown one: typer knows only commands that it holds."""
        word = args[0]
        if word not in COMMANDS and not ctx.resilient_parsing:
            similar = ", ".join(map(repr, get_close_matches(word, COMMANDS)))
            if similar:
                ctx.fail(f"No such command {word!r}. Did you mean {similar}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the words and summaries, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(word, entry.summary) for word, entry in COMMANDS.items()])
