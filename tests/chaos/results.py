"""What a chaos script claims and measures: as a table, as JSON, as an exit code."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Claim(NamedTuple):
    """What must be true, whether it was, and what was measured."""

    what: str
    held: bool
    measured: str


class Result:
    """Claims and figures of one run."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.claims: list[Claim] = []
        self.figures: dict[str, Any] = {}

    @property
    def held(self) -> bool:
        """Every claim held, and there was one."""
        return bool(self.claims) and all(claim.held for claim in self.claims)

    def claim(self, what: str, held: bool, measured: object = "") -> None:
        """Something that must be true."""
        self.claims.append(Claim(what, bool(held), str(measured)))
        progress(f"{'held' if held else 'BROKEN'}: {what}: {measured}")

    def note(self, **figures: Any) -> None:
        """Something that was measured."""
        self.figures.update(figures)

    def text(self) -> str:
        """The table for people."""
        lines = [f"== {self.title}: {'every claim held' if self.held else 'NOT every claim held'}"]
        lines += [
            f"  {'ok    ' if claim.held else 'BROKEN'}  {claim.what}: {claim.measured}"
            for claim in self.claims
        ]
        width = max(map(len, self.figures), default=0)
        lines += [
            f"  {name:{width}}  {json.dumps(value)}"
            for name, value in self.figures.items()
            if not isinstance(value, list)
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        claims = [claim._asdict() for claim in self.claims]
        return {"title": self.title, "held": self.held, "claims": claims, "figures": self.figures}


def progress(words: str) -> None:
    """One line about where a long run is."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], Result]
) -> Callable[[], int]:
    """Make a script's `main` out of its flags and its run."""

    def main() -> int:
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
        parser.add_argument("--out", type=Path, metavar="FILE", help="append the table to a file")
        arguments = parser.parse_args()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
        out: Path | None = arguments.out
        try:
            result = run(arguments)
        except Unfit as error:
            _append(out, f"== {Path(sys.argv[0]).stem}: not run: {error}")
            print(error, file=sys.stderr)
            return 2
        except BaseException as error:
            _append(out, f"== {Path(sys.argv[0]).stem}: broke off: {error!r}")
            raise
        print(result.text())
        _append(out, result.text())
        if arguments.json:
            arguments.json.write_text(json.dumps(result.as_json(), indent=1) + "\n")
        return 0 if result.held else 1

    return main


def _append(out: Path | None, text: str) -> None:
    if out is not None:
        with out.open("a") as file:
            file.write(text + "\n")


class Unfit(Exception):
    """This machine cannot do it; the message says what is missing."""
