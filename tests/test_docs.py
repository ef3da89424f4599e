import re
from pathlib import Path

import pytest

import sipsidecar
from sipsidecar.calls.events import CallRecord, MediaRecord
from sipsidecar.calls.findings import KINDS
from sipsidecar.cli.commands import _parser
from sipsidecar.config import SETTINGS, settings_markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readme_has_every_setting_with_its_default() -> None:
    assert settings_markdown() in README
    assert all(f"`{setting.key}`" in README for setting in SETTINGS)


def test_the_readme_has_every_command() -> None:
    actions = _parser()._subparsers._group_actions  # type: ignore[union-attr]
    commands = list(actions[0].choices)  # type: ignore[arg-type]
    assert len(commands) >= 8
    for command in commands:
        assert f"`sipsidecar {command}" in README, command


def test_the_readme_has_every_flag_that_a_record_can_carry() -> None:
    source = "".join(
        (ROOT / "src/sipsidecar/calls" / name).read_text()
        for name in ("record.py", "table.py", "leaving.py", "restoring.py")
    )
    flags = set(re.findall(r'flags\.add\(\s*"([a-z0-9_]+)"', source))
    flags |= set(re.findall(r'\{\*record\.flags, "([a-z]+)"', source))
    flags |= set(re.findall(r'marks = .*"([a-z]+)"', source))
    assert {"challenged", "interrupted", "no_ack", "rebuilt", "warming"} <= flags
    for flag in flags - {"cancelled"}:
        assert f"`{flag}`" in README, flag


def test_the_readme_has_no_field_that_records_lack() -> None:
    records = README.partition("## What a record says")[2]
    call, _, rest = records.partition("## How a call sounded")
    media, _, found = rest.partition("| finding |")
    assert 20 < len(_named(call)) < 60
    assert _named(call) <= set(CallRecord.__struct_fields__)
    assert 10 < len(_named(media)) < 60
    assert _named(media) <= set(MediaRecord.__struct_fields__)
    assert _named(found.partition("\n\n")[0]) == set(KINDS)


def _named(tables: str) -> set[str]:
    """What the first columns of the tables name."""
    return {
        name
        for row in re.findall(r"^\| (`[^|]+) \|", tables, re.MULTILINE)
        for name in re.findall(r"`([a-z0-9_]+)`", row)
    }


def test_the_house_in_the_readme_has_every_module() -> None:
    house = README.partition("## How it is built")[2].partition("Rooms import")[0]
    for path in (ROOT / "src/sipsidecar").rglob("*.py"):
        if not path.name.startswith("__") and path.name not in (
            "config.py",
            "demo.py",
            "tables.py",
        ):
            assert path.stem in house, path.name


@pytest.mark.parametrize("target", ["run", "demo", "test", "check", "live", "bench"])
def test_the_makefile_has_what_the_readme_says(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_changelog_speaks_of_this_version() -> None:
    assert f"## {sipsidecar.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_source_file_has_its_twin_test() -> None:
    for path in (ROOT / "src/sipsidecar").rglob("*.py"):
        if path.name.startswith("__") or path.name == "events.py":
            continue
        room = path.parent.relative_to(ROOT / "src/sipsidecar")
        assert (ROOT / "tests" / room / f"test_{path.name}").exists(), path


def test_nothing_in_the_tree_names_a_path_of_a_machine() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "src").rglob("*.py"), *(ROOT / "kamailio").iterdir()]:
        assert not re.search(r"(^|[\s\"'(])/(work|root)/", path.read_text()), path
