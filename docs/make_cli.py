"""Write docs/cli.md from the commands themselves; with --check, say whether the page is current."""

import sys
from pathlib import Path

from page import write_or_check
from typer.main import get_command
from typer.testing import CliRunner

from foreword.cli import app

PAGE = Path(__file__).parent / "cli.md"
HEAD = "# Command line\n\nMade from the commands by `make docs`; `make check` compares.\n"


def render() -> str:
    """Return the page: the help of every command, at 100 columns."""
    runner = CliRunner(env={"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"})
    commands: list[list[str]] = [[]]
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        commands.append([name])
        commands += [[name, sub] for sub in getattr(command, "commands", ())]
    parts = [HEAD]
    for words in commands:
        shown = runner.invoke(app, [*words, "--help"], prog_name="foreword", max_content_width=100)
        lines = "\n".join(line.rstrip() for line in shown.output.strip().splitlines())
        parts.append(f"\n## foreword {' '.join(words)}".rstrip() + f"\n\n```\n{lines}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, render(), "is not what the commands say; run: make docs"))
