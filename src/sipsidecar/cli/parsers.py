"""What parsers of commands share: errors of one line, help with an example, where settings are."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sipsidecar.tables import printable

Handle = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Say it, and end with exit code 2."""
        self.exit(2, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


class Commands:
    """The commands of a parser, or those of one command."""

    def __init__(self, parser: argparse.ArgumentParser, *, required: bool = False) -> None:
        self._commands = parser.add_subparsers(
            title="commands", metavar="COMMAND", required=required
        )

    def add(
        self, name: str, handle: Handle, text: str, example: str, *, settings: bool = True
    ) -> argparse.ArgumentParser:
        """Add a command; `settings`: it takes the flags that say where its configuration is."""
        command = self._add(name, text, example)
        command.set_defaults(handle=handle)
        if not settings:
            return command
        where = command.add_argument_group("where")
        where.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
        where.add_argument("--data", metavar="DIR", help="folder of the sidecar's own PostgreSQL")
        where.add_argument("--dsn", metavar="DSN", help="use this PostgreSQL: postgresql://...")
        return command

    def group(self, name: str, text: str, example: str) -> "Commands":
        """Add a command that has commands of its own."""
        return Commands(self._add(name, text, example), required=True)

    def _add(self, name: str, text: str, example: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = self._commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return command


def number(text: str) -> float:
    """A plain decimal number; no nan, inf or other alphabets' digits."""
    if not re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,6})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected a number such as 50 or 0.7, got {text!r}")
    return float(text)
