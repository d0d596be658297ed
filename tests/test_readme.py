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
    typed = [line.removeprefix("$ ").split("#")[0].split() for line in lines]
    commands = [words for words in typed if words[:1] == ["foreword"]]
    assert len(commands) >= 10
    for _, command, *rest in commands:
        path = [command, *rest[: command == "prompts"]]
        help_text = CliRunner().invoke(app, [*path, "--help"], terminal_width=100).output
        options = [word for word in rest if word.startswith("--")]
        assert all(option in help_text for option in options)


def test_the_contract_is_a_part_of_the_page() -> None:
    page = (ROOT / "docs" / "contract.md").read_text()
    measured = page[page.index("## Key/value prompts") :]
    _, _, rest = README.partition("<!-- contract")
    table = rest.partition("<!-- end of contract -->")[0]
    rows = re.findall(r"^\| (\w[\w ]*) \| (\w+) \| \**(\w+)\** \|$", table, re.MULTILINE)
    assert len(rows) == 8
    for case, ours, stock in rows:
        cell = re.search(rf"^\| {case} \| (\w+) / \**(\w+)", measured, re.MULTILINE)
        assert cell and cell.groups() == (ours, stock), case
    versions = re.search(r"PEFT (\S+) with transformers (\d+\.\d+):", README)
    assert versions and f"transformers {versions[2]}." in page and f"peft {versions[1]}." in page


def test_the_index_has_every_page_once_and_no_other() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    linked = re.findall(r"\]\(([^)#]+\.(?:md|ipynb))\)", index)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    pages |= {f"cookbook/{page.name}" for page in (ROOT / "docs" / "cookbook").glob("*.ipynb")}
    pages |= {f"zh/{page.name}" for page in (ROOT / "docs" / "zh").glob("*.md")}
    assert {link for link in linked if not link.startswith("..")} == pages
    assert len(set(linked)) == len(linked)


PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


TRANSLATED = {
    ROOT / "README.zh.md": ROOT / "README.md",
    **{page: ROOT / "docs" / page.name for page in (ROOT / "docs" / "zh").glob("*.md")},
}


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_translation_has_the_headings_commands_numbers_and_tables_of_its_page(page: Path) -> None:
    texts = [one.read_text().partition("<!-- rooms")[0] for one in (page, TRANSLATED[page])]
    for told in (headings, commands, tables):
        translated, original = map(told, texts)
        assert translated == original, told.__name__


def headings(text: str) -> list[int]:
    """Return the levels of the headings."""
    plain = "".join(text.split("```")[::2])
    return [len(marks) for marks in re.findall(r"^(#+) ", plain, re.MULTILINE)]


def commands(text: str) -> list[str]:
    """Return what stands in fenced blocks, without comments."""
    lines = [line for block in text.split("```")[1::2] for line in block.splitlines()]
    return [line.partition("  # ")[0].rstrip() for line in lines]


def tables(text: str) -> list[list[str]]:
    """Return the numbers of each row of a table."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [re.findall(r"\d+(?:[.,]\d+)*", row) for row in rows]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}
