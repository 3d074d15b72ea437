"""The entry point: the commands, and how errors become one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..allocation import keep_freed_memory
from ..errors import Cancelled, RegMambaError, is_out_of_memory
from ..version import __version__
from .apply import apply
from .compose import compose
from .convert import convert
from .data import app as data_app
from .demo import demo
from .evaluate import evaluate
from .info import info
from .inspect import inspect
from .invert import invert
from .jacobian import jacobian
from .options import settings_help
from .register import register
from .train import train
from .train_structures import train_structures
from .warmup import warmup

DEBUG = "REGMAMBA_DEBUG"
FAILED, BAD_INPUT, STOPPED = 1, 2, 130
_STOPPED = "Stopped; no unfinished file was left behind."
# click's UsageError, whichever click Typer brings along: Typer itself exports only this subclass.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # type: ignore[assignment]

app = typer.Typer(
    name="regmamba",
    help="Register 3-D images: align one to another, deformably, in world space.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command(no_args_is_help=True, epilog=settings_help())(register)
for command in (apply, invert, compose, jacobian, evaluate, inspect, convert):
    app.command(no_args_is_help=True)(command)
app.command(no_args_is_help=True)(train)
app.command(no_args_is_help=True)(train_structures)
app.command()(info)
app.command()(warmup)
app.command()(demo)
app.add_typer(data_app)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Register 3-D images: align one to another, deformably, in world space."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        0; 1 after an unexpected error; 2 after bad input or usage; 130 after Ctrl-C. Every error is one line
        on stderr. With REGMAMBA_DEBUG set, errors come with their traceback.
    """
    if argv is None:  # as a program: a scheduler's SIGTERM cleans up as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        keep_freed_memory()
    try:
        arguments = list(argv) if argv is not None else sys.argv[1:]
        code = app(args=arguments, prog_name="regmamba", standalone_mode=False)
        # Some versions of Typer turn Ctrl-C into this code instead of raising.
        return _fail(_STOPPED, STOPPED) if code == STOPPED else int(code or 0)
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort, Cancelled):
        return _fail(_STOPPED, STOPPED)
    except _UsageError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        # Without any argument the help is shown, and there is nothing to add.
        return _fail(f"{message} See --help.", BAD_INPUT) if message.strip() else BAD_INPUT
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        if isinstance(error, RegMambaError):
            return _fail(str(error), BAD_INPUT)
        if is_out_of_memory(error):
            return _fail(
                "Not enough memory; close other programs, use --device cpu, or a coarser working grid "
                "(--set spacing=2).",
                BAD_INPUT,
            )
        kind = type(error).__name__
        return _fail(f"Unexpected {kind}: {error} (set {DEBUG}=1 to see where, and report it).", FAILED)


def _fail(message: str, code: int) -> int:
    print("Error:", " ".join(message.split()), file=sys.stderr)
    return code
