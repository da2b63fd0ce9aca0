"""Writes docs/commands.md, the help of every command: `python docs/make_commands.py`. A test holds them equal."""

from collections.abc import Iterator
from pathlib import Path

import typer

from rlhfkit.cli.app import app

PAGE = Path(__file__).parent / "commands.md"
WIDTH = 100

GROUPS = {
    "Train": ["run", "recipes", "tune", "compare", "average"],
    "Look at the result": ["generate", "evaluate", "report", "explain", "probe"],
    "Ready, and right?": ["doctor", "diagnose", "dashboard", "bench"],
    "People": ["label", "labels"],
    "Many machines": ["plan", "cluster"],
    "Other tools": ["export", "import"],
}
TOP = """\
# Commands

What the option `--help` says, of every command. Settings are not options: they are given as `section.key=value`,
and [settings](settings.md) lists them.
"""


def page() -> str:
    """The whole page."""
    top = typer.main.get_command(app)
    assert isinstance(top, typer.core.TyperGroup)
    left = set(top.commands) - {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "More": sorted(left)} if left else GROUPS
    parts = [TOP]
    for title, names in groups.items():
        parts.append(f"## {title}\n")
        for name in names:
            if command := top.commands.get(name):
                parts += [f"### `{words}`\n\n```text\n{text}\n```\n" for words, text in helps(command, name)]
    return "\n".join(parts)


def helps(command: typer.core.TyperCommand | typer.core.TyperGroup, words: str) -> Iterator[tuple[str, str]]:
    """The words of a command and its help, and those of the commands below it."""
    with typer.Context(command, info_name=f"rlhfkit {words}", max_content_width=WIDTH, terminal_width=WIDTH) as context:
        yield words, command.get_help(context).strip()
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{words} {name}")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
