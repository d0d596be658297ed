"""What the README says can be typed: the demo, the Python lines, the commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foreword.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    parts = README.split("```")[1::2]
    return [part.partition("\n")[2] for part in parts if part.partition("\n")[0] == language]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the demo once, with two steps and four test rows."""
    folder = tmp_path_factory.mktemp("demo")
    script = ROOT / "examples" / "home_commands.py"
    done = subprocess.run(
        [sys.executable, str(script), "2", "4"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def test_the_demo_compares_three_systems_and_says_what_next(demo: Path) -> None:
    said = (demo / "said.txt").read_text()
    for expected in ("bare model", "hand-written instruction", "soft prompt", "the same", "Next:"):
        assert expected in said
    assert "DIFFERENT" not in said


def test_the_python_lines_run(demo: Path) -> None:
    (code,) = blocks("python")
    subprocess.run([sys.executable, "-c", code], cwd=demo, check=True, capture_output=True)


def test_the_commands_exist_with_their_options() -> None:
    lines = [line for block in blocks("") for line in block.splitlines()]
    commands = [line.split("#")[0].split() for line in lines if line.startswith("foreword ")]
    assert len(commands) >= 3
    for _, command, *rest in commands:
        help_text = CliRunner().invoke(app, [command, "--help"], terminal_width=100).output
        options = [word for word in rest if word.startswith("--")]
        assert all(option in help_text for option in options)


def test_the_index_has_every_page_once_and_no_other() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    linked = re.findall(r"\]\(([^)#]+\.(?:md|ipynb))\)", index)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    pages |= {f"cookbook/{page.name}" for page in (ROOT / "docs" / "cookbook").glob("*.ipynb")}
    assert {link for link in linked if not link.startswith("..")} == pages
    assert len(set(linked)) == len(linked)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}
