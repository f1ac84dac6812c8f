"""A command line, understood but not run."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

from batchsweep.cli.main import command_line


def parsed(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The command's name (``launch k8s``) and its options, as it would be called with them."""
    command: Any = command_line()
    words, names = list(arguments), []
    while isinstance(command, TyperGroup):
        names.append(words.pop(0))
        command = command.commands[names[-1]]
    return " ".join(names), command.make_context(names[-1], words).params
