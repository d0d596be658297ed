"""Site hooks: what MkDocs is told beyond the pages as they lie under docs/.

In: the pages, the notebooks of the cookbook, and the few Markdown files above docs/. Out: the same
as pages of one site, whose navigation is the index of docs/README.md. The README above docs/ is the
site's home. Links between these files lead from page to page; links to code lead to a page that
shows it.
"""

import importlib
import json
import posixpath
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages of the site by their files' places in the repository; others stay where they are.
MOVED = {
    "README.md": "README.md",  # MkDocs' home
    "README.zh.md": "zh/README.md",
    "docs/README.md": "pages.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
# A name of the reference: a line of a list, and those that go on with it.
REFERENCE = re.compile(r"^- \[`(foreword\.[\w.]+)`\]\([^)]*\).*\n(?:  .*\n)*", re.MULTILINE)


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Take the navigation from the index of the pages."""
    config["nav"] = navigation((DOCS / "README.md").read_text())
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages that lie elsewhere, are notebooks, or show code."""
    from mkdocs.structure.files import File, InclusionLevel

    if own := files.get_file_from_path("README.md"):
        files.remove(own)
    for source, page in MOVED.items():
        files.append(File.generated(config, page, content=moved(source)))
    for notebook in sorted(DOCS.glob("cookbook/*.ipynb")):
        source = notebook.relative_to(ROOT).as_posix()
        text = linked(as_markdown(json.loads(notebook.read_text())), source)
        files.append(File.generated(config, place(source), content=text))
    for source in sorted(linked_code()):
        page = File.generated(config, place(source), content=code(ROOT / source))
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(text: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Lead the links of a page under docs/ to pages, and set its reference in full."""
    if page.file.generated_by is not None:
        return text
    source = page.file.src_uri
    return linked(in_full(text) if source == "reference.md" else text, f"docs/{source}")


def navigation(index: str) -> list[Any]:
    """Return MkDocs' navigation: each heading of an index with the pages that it links."""
    found: list[Any] = ["README.md", "pages.md"]
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        links = [target for _, target, _ in LINK.findall(text) if "#" not in target]
        pages = [place(posixpath.normpath(f"docs/{target}")) for target in links]
        found.append({title: pages})
    return [*found, {"Project": ["project/changelog.md", "project/security.md"]}]


def in_full(reference: str) -> str:
    """Return the reference with each of its names in full, for mkdocstrings."""
    return REFERENCE.sub(lambda match: f"::: {match[1]}\n\n{options(match[1])}\n", reference)


def options(name: str) -> str:
    """Return the options of a config class as a table; of anything else, nothing."""
    if not name.endswith("Config"):
        return ""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    kind = getattr(importlib.import_module("foreword.config"), name.rpartition(".")[2])
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for one in fields(kind):
        default = "" if one.default is MISSING else f"`{one.default!r}`"
        said = str(one.metadata.get("help", "")).replace("|", "\\|").replace("<", "&lt;")
        typed = (one.type if isinstance(one.type, str) else str(one.type)).replace("|", "\\|")
        lines.append(f"| `{one.name}` | {typed} | {default} | {said} |")
    return "\n".join(lines) + "\n"


def place(source: str) -> str:
    """Return the page of the site that a file of the repository becomes."""
    if source in MOVED:
        return MOVED[source]
    if not source.startswith("docs/"):
        return f"files/{source}.md"
    page = source.removeprefix("docs/")
    return page.removesuffix(".ipynb") + ".md" if page.endswith(".ipynb") else page


def moved(source: str) -> str:
    """Return the text of a file that becomes a page elsewhere."""
    return linked((ROOT / source).read_text(), source)


def linked_code() -> set[str]:
    """Return the files and folders outside of docs/ that a page links and that are no page."""
    found = set()
    for page in {*DOCS.rglob("*.md"), *(ROOT / source for source in MOVED)}:
        text = page.read_text()
        if page == DOCS / "reference.md":
            text = in_full(text)  # its names are shown in full, not as links
        for _, target, _ in LINK.findall(text):
            file = (page.parent / target.partition("#")[0]).resolve()
            if "://" not in target and file.exists() and file != page.parent:
                found.add(file.relative_to(ROOT).as_posix())
    return {one for one in found if one not in MOVED and not one.startswith("docs/")}


def code(path: Path) -> str:
    """Return a page that shows a file, or every file of a folder."""
    shown = sorted(path.iterdir()) if path.is_dir() else [path]
    blocks = [
        f"## `{one.name}`\n\n````{one.suffix[1:]}\n{one.read_text()}\n````"
        for one in shown
        if one.suffix in (".py", ".sh", ".yaml", ".json", ".service", "")
    ]
    return "\n\n".join([f"# {path.relative_to(ROOT).as_posix()}", *blocks])


def linked(text: str, source: str) -> str:
    """Return a file's text with its links as they lead from its page on the site."""
    start = posixpath.dirname(place(source))

    def lead(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or "://" in target:
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        page = posixpath.relpath(place(file), start or ".")
        return match[1] + page + ("#" + anchor if anchor else "") + match[3]

    return LINK.sub(lead, text)


def as_markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook's cells, and what they gave, as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        parts += [output_text(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def output_text(output: dict[str, Any]) -> str:
    """Return one output of a cell: HTML as it is, text in a block."""
    shown = output.get("data", {})
    if html := "".join(shown.get("text/html", "")):
        return html
    text = "".join(output.get("text") or shown.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```"
