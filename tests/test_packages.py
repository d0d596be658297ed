"""Packages: what a wheel and a source distribution hold, and what they say of themselves."""

import ast
import importlib.metadata
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD = """
import sys
from hatchling import build
for make in (build.build_wheel, build.build_sdist):
    make(sys.argv[1])
"""
# Data that code reads at run time, which no import would miss.
DATA = {
    "foreword/py.typed",
    "foreword/unrelated.txt",
    "foreword/doctor/stock_peft_releases.json",
    "foreword/server/page/index.html",
    "foreword/server/page/page.css",
    "foreword/server/page/page.js",
    "foreword/server/page/favicon.svg",
}
# What is imported under another name than it is installed by.
INSTALLED_AS = {"PIL": "pillow", "yaml": "pyyaml", "opentelemetry": "opentelemetry-sdk"}
# What another package brings, always.
BROUGHT_BY = {
    "h11": "uvicorn",
    "huggingface_hub": "transformers",
    "jinja2": "torch",
    "pydantic_core": "pydantic",
    "regex": "transformers",
    "starlette": "fastapi",
    "tokenizers": "transformers",
}
IN_A_NOTEBOOK = {"IPython"}  # imported where it is there already


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True)
    return folder


def wheel_of(built: Path) -> zipfile.ZipFile:
    [path] = built.glob("*.whl")
    return zipfile.ZipFile(path)


def source_names(built: Path) -> set[str]:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


def metadata_of(built: Path) -> Message:
    with wheel_of(built) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(wheel.read(name))


def own_files(*folders: str) -> set[str]:
    """Return the files of folders, without what running them leaves behind."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in found}
    left_behind = ("__pycache__", ".egg-info/", "/.")
    return {name for name in names if not any(part in name for part in left_behind)}


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with wheel_of(built) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == own_files("foreword") and names > DATA


def test_the_source_distribution_holds_what_the_tests_need(built: Path) -> None:
    names = source_names(built)
    assert names >= own_files("foreword", "tests", "examples") | {
        "README.md",
        "LICENSE",
        "Makefile",
    }
    outside = {name.partition("/")[0] for name in names}
    assert outside <= {
        "foreword", "tests", "examples", "benchmarks", "docs", "README.md", "CHANGELOG.md",
        "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile", "constraints.txt",
        "constraints-clients.txt", "constraints-vllm.txt", "pyproject.toml", "PKG-INFO",
        ".gitignore",
    }  # fmt: skip
    assert not [name for name in names if "__pycache__" in name]


def test_the_package_index_takes_both(built: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_the_metadata_is_whole(built: Path) -> None:
    said = metadata_of(built)
    assert said["License-Expression"] == "Apache-2.0" and said["License-File"] == "LICENSE"
    assert said["Requires-Python"] == ">=3.11" and said["Keywords"]
    groups = {one.partition(" :: ")[0] for one in said.get_all("Classifier", [])}
    wanted = {"Development Status", "Intended Audience", "Operating System", "Typing"}
    assert wanted | {"Programming Language", "Topic"} <= groups
    assert "License" not in groups  # the expression says it
    assert set(said.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])


def test_what_is_imported_is_declared() -> None:
    """Each package that foreword imports is a dependency, or of an extra, or brought by one."""
    extras = PROJECT["optional-dependencies"]
    declared = _names(PROJECT["dependencies"]).union(*map(_names, extras.values()))
    imported = _imported() - set(sys.stdlib_module_names) - IN_A_NOTEBOOK
    for module in sorted(imported):
        if (brings := BROUGHT_BY.get(module)) is not None:
            needed = _names(importlib.metadata.requires(brings) or [])
            assert brings in declared and module.replace("_", "-") in needed, module
        else:
            assert INSTALLED_AS.get(module, module.replace("_", "-")) in declared, module
    assert len(imported) > 20


def _names(requirements: list[str]) -> set[str]:
    return {Requirement(one).name.replace("_", "-").lower() for one in requirements}


def _imported() -> set[str]:
    found = set()
    for path in (ROOT / "foreword").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - {"foreword"}
