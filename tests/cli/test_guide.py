"""The page on the command line names commands and options that there are, and every command is on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from isd.cli import app

from .conftest import invoke

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "cli.md"
COMMANDS = typer.main.get_command(app).commands
OPTIONS = {
    name: {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in COMMANDS.items()
}


def test_lines_of_the_guide_are_commands_with_their_options() -> None:
    found = re.findall(r"isodiff (\w+)((?: [^`\n#;]+)?)", GUIDE.read_text())
    assert {name for name, _ in found} - {"COMMAND"} == set(COMMANDS)
    unknown = [
        (name, option)
        for name, rest in found
        if name in OPTIONS
        for option in re.findall(r"(?<!\w)--?[a-z][a-z-]*", rest)
        if option not in OPTIONS[name] and option not in ("--help", "-h")
    ]
    assert unknown == []


def test_options_named_elsewhere_on_the_page_are_those_of_some_command() -> None:
    known = set.union(*OPTIONS.values(), {"--help"})
    assert [option for option in re.findall(r"`(--[a-z-]+)", GUIDE.read_text()) if option not in known] == []


def test_the_table_of_common_options_is_right() -> None:
    rows = re.findall(r"^\| (`-[^|]+) \| ([^|]+) \|", GUIDE.read_text(), flags=re.MULTILINE)
    rows = [
        row
        for row in rows
        if re.match(r"all|[a-z, ]+$", row[1]) and set(row[1].split(", ")) & {*COMMANDS, "all", "all but info"}
    ]
    assert len(rows) == 9
    for options, commands in rows:
        named = set(COMMANDS) if commands.startswith("all") else set(commands.split(", "))
        named -= {"info"} if "but info" in commands else set()
        for option in re.findall(r"--[a-z-]+", options):
            assert {name for name in COMMANDS if option in OPTIONS[name]} >= named, option


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_every_command(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "--debug" in result.stdout
