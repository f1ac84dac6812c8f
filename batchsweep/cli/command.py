"""A typed function as a command: its docstring is its help page, its file's name is its name.

``add`` is all that a new command needs beside its file. The docstring's first line is what
``batchsweep --help`` lists; what follows ``example:`` is printed below the options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import typer

from batchsweep.cli.options import Debug, LogFormat
from batchsweep.log import set_up_logging

Function = Callable[..., None]


def group(text: str, *, epilog: str, name: str | None = None) -> typer.Typer:
    """A command that has commands: ``batchsweep`` itself, and ``launch``."""
    return typer.Typer(
        name=name,
        help=verbatim(text),
        short_help=_first_line(text),
        epilog=verbatim(epilog),
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def add(app: typer.Typer, function: Function) -> None:
    """Make the function a command of ``app``, with the options that all commands have."""
    text, _, example = (inspect.getdoc(function) or "").partition("\n\nexample:\n")
    app.command(
        function.__module__.rpartition(".")[2].replace("_", "-"),
        help=verbatim(text),
        short_help=_first_line(text),
        epilog=verbatim(f"example:\n{example}"),
    )(_with_log_options(function))


def verbatim(text: str) -> str:
    """Text that the help page shows with its own line breaks (a paragraph's mark is ``\\b``)."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.split("\n\n"))


def _first_line(text: str) -> str:
    return text.partition("\n")[0].removesuffix(".")


def _with_log_options(function: Function) -> Function:
    @functools.wraps(function)
    def run(*, log_format: LogFormat, debug: bool, **given: Any) -> None:
        set_up_logging(log_format=log_format, debug=debug)
        function(**given)

    signature = inspect.signature(function, eval_str=True)
    more = [
        Parameter("log_format", Parameter.KEYWORD_ONLY, default="text", annotation=LogFormat),
        Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=Debug),
    ]
    vars(run)["__signature__"] = signature.replace(
        parameters=[*signature.parameters.values(), *more]
    )
    return run
