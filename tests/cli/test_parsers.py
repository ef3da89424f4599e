import argparse

import pytest

from sipsidecar.cli.parsers import Commands, Parser, number


def made() -> Parser:
    parser = Parser(prog="x")
    commands = Commands(parser)
    commands.add("alone", lambda _: 1, "stand alone", "x alone", settings=False)
    group = commands.group("many", "have commands of its own", "x many one")
    group.add("one", lambda _: 2, "be one", "x many one").add_argument("--n", type=number)
    return parser


def test_a_command_and_a_command_of_a_command_are_found() -> None:
    parser = made()
    found = parser.parse_args(["alone"])
    assert (found.handle(found), hasattr(found, "config")) == (1, False)
    found = parser.parse_args(["many", "one", "--dsn", "d", "--n", "-1.5"])
    assert (found.handle(found), found.dsn, found.n) == (2, "d", -1.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["many"], "x many: the following arguments are required: COMMAND; see x many --help"),
        (["many", "\x1b[31m"], "invalid choice: '\\x1b[31m'"),
        (["alone", "--dsn", "d"], "unrecognized arguments"),
    ],
)
def test_an_error_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        made().parse_args(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert says in line


def test_help_has_the_text_and_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        made().parse_args(["many", "one", "--help"])
    said = capsys.readouterr().out
    assert "Be one." in said
    assert said.endswith("example: x many one\n")


@pytest.mark.parametrize(("text", "value"), [("5", 5.0), ("-0.5", -0.5), ("0", 0.0)])
def test_a_number_is_plain(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "nan", "inf", "1e3", "1_0", "٣", "+5", "5.", " 5", "9" * 99])
def test_what_is_no_plain_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number"):
        number(text)
