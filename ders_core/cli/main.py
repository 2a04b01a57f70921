"""The `ders` command: thin, every command a call of the library.

Exit status: 0 done, 1 a `DersError` (one line on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import ders_core
from ders_core.cli.commands import Commands
from ders_core.errors import DersError
from ders_core.files.scratch import sweep_scratch

app = typer.Typer(
    name="ders",
    cls=Commands,
    help="See how redundant an upcycled MoE's experts are, shrink them, measure, export.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help takes half the time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        print(f"ders-studio {ders_core.__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors become one line on stderr."""
    sweep_scratch()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large pages for large tensors
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it looks for them everywhere
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except DersError as error:
        print(f"ders: {error}", file=sys.stderr)
        sys.exit(1)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        print("ders: interrupted; no half-written output is left", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        show = getattr(error, "show", None)  # a click usage error shows itself
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
