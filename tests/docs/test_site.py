"""The site: its navigation is the index of the pages, its links lead on, its reference is whole."""

import importlib
import inspect
import posixpath
import sys
from pathlib import Path

import foreword
from foreword.config import TrainConfig

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import site_hooks  # noqa: E402

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
NAMES = [match[1] for match in site_hooks.REFERENCE.finditer(REFERENCE)]


def test_the_navigation_is_the_index_of_the_pages() -> None:
    index = (
        "# Pages\n\n## First\n\n1. [a](a.md): x; [b](b.md#c)\n\n## Then\n\n- [N](../README.md)\n"
    )
    found = site_hooks.navigation(index)
    assert found[:-1] == ["README.md", "pages.md", {"First": ["a.md"]}, {"Then": ["README.md"]}]
    whole = site_hooks.navigation((ROOT / "docs" / "README.md").read_text())
    listed = [page for part in whole if isinstance(part, dict) for pages in part.values()
              for page in pages]  # fmt: skip
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(listed) and len(set(listed)) == len(listed)


def test_no_page_outside_of_the_folder_is_shown_as_code() -> None:
    assert not [source for source in site_hooks.linked_code() if source.endswith(".md")]


def test_every_link_leads_to_a_page_of_the_site() -> None:
    sources = {*(ROOT / "docs").rglob("*.md"), *(ROOT / source for source in site_hooks.MOVED)}
    pages = {site_hooks.place(source.relative_to(ROOT).as_posix()) for source in sources}
    pages |= {site_hooks.place(source) for source in site_hooks.linked_code()}
    for notebook in (ROOT / "docs").glob("cookbook/*.ipynb"):
        pages.add(site_hooks.place(notebook.relative_to(ROOT).as_posix()))
    for source in sorted(sources):
        name, text = source.relative_to(ROOT).as_posix(), source.read_text()
        if name == "docs/reference.md":
            text = site_hooks.in_full(text)
        start = posixpath.dirname(site_hooks.place(name))
        for _, target, _ in site_hooks.LINK.findall(site_hooks.linked(text, name)):
            target = target.partition("#")[0]
            if target.endswith(".md"):
                assert posixpath.normpath(posixpath.join(start, target)) in pages, (name, target)


def test_links_lead_from_page_to_page() -> None:
    def led(link: str, source: str) -> str:
        return site_hooks.linked(f"[x]({link})", source).removeprefix("[x](").removesuffix(")")

    assert led("data.md#turns", "docs/training.md") == "data.md#turns"
    assert led("README.md", "docs/training.md") == "pages.md"
    assert led("../README.md", "docs/training.md") == "README.md"
    assert led("docs/data.md", "README.md") == "data.md"
    assert led("docs/README.md", "CONTRIBUTING.md") == "../pages.md"
    assert led("../SECURITY.md#keys", "docs/server.md") == "project/security.md#keys"
    assert led("../examples/tool_calls.py", "docs/data.md") == "files/examples/tool_calls.py.md"
    assert led("../data.md", "docs/cookbook/tickets.ipynb") == "../data.md"
    assert led("cookbook/tickets.ipynb", "docs/quickstart.md") == "cookbook/tickets.md"
    assert led("https://host/a.md", "README.md") == "https://host/a.md"
    assert led("#turns", "docs/data.md") == "#turns"


def test_a_notebook_becomes_its_text_its_code_and_what_it_gave() -> None:
    html = {"output_type": "display_data", "data": {"text/html": "<b>y</b>", "text/plain": "y"}}
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}]},
        {"cell_type": "code", "source": ["y"], "outputs": [{"text": ["a\n", "b\n"]}, html]},
    ]
    expected = (
        "# A\ntext\n\n```python\n1 + 1\n```\n\n```text\n2\n```\n\n"
        "```python\ny\n```\n\n```text\na\nb\n```\n\n<b>y</b>\n"
    )
    assert site_hooks.as_markdown({"cells": cells}) == expected


def test_every_public_name_is_in_the_reference_and_leads_to_its_code() -> None:
    assert {name for name in NAMES if name.count(".") == 1} - {"foreword.errors"} == {
        f"foreword.{name}" for name in foreword.__all__
    }
    assert len(set(NAMES)) == len(NAMES)
    for match in site_hooks.REFERENCE.finditer(REFERENCE):
        module, _, name = match[1].rpartition(".")
        one = getattr(importlib.import_module(module), name)
        assert f"](../{Path(inspect.getfile(one)).relative_to(ROOT).as_posix()})" in match[0]


def test_every_public_name_has_a_docstring_with_what_it_takes() -> None:
    for full in NAMES:
        module, _, name = full.rpartition(".")
        one = getattr(importlib.import_module(module), name)
        assert inspect.getdoc(one), full
        if inspect.isfunction(one) and len(inspect.signature(one).parameters) > 2:
            assert "Args:" in one.__doc__ or "Takes what" in one.__doc__, full


def test_the_options_of_a_config_are_a_table() -> None:
    table = site_hooks.options("foreword.TrainConfig").splitlines()
    assert len(table) == 2 + len(TrainConfig.__dataclass_fields__)
    assert any(line.startswith("| `num_virtual_tokens` | ") for line in table)
    assert site_hooks.options("foreword.answer") == ""
