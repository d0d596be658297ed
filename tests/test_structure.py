"""The shape of the package: what is public, and which room may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import foreword

PACKAGE = Path(foreword.__file__).parent
# A room, a folder or a module at the top, imports only itself and rooms before it.
ROOMS = [
    "errors", "lazy", "compat", "storage", "config", "demo", "prompt", "data", "loading", "model",
    "generation", "verification", "backbone", "chat", "training", "engine", "evaluation", "doctor",
    "server", "vllm_plugin", "cli",
]  # fmt: skip
# Modules that have not moved into their room yet.
PENDING = {
}  # fmt: skip


def room_of(name: str) -> str:
    """Return the room of a module, given by its dotted name below the package."""
    first = name.split(".")[0]
    return PENDING.get(first, first)


def module_of(path: Path) -> str:
    """Return a file's dotted name below the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Return the rooms that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "foreword":
            found |= {f"foreword.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    rooms = {room_of(name.removeprefix("foreword.")) for name in found if "foreword." in name}
    return rooms & set(ROOMS)


def test_rooms_import_only_rooms_before_them() -> None:
    for path in PACKAGE.rglob("*.py"):
        name = module_of(path)
        if name in ("__init__", "__main__"):
            continue
        allowed = ROOMS[: ROOMS.index(room_of(name)) + 1]
        assert imported(path) <= set(allowed), f"{path.name} imports a room after its own"


def test_the_public_names_are_these() -> None:
    assert foreword.__all__ == [
        "Backbone", "EncodingConfig", "Example", "ForewordError", "Prefix", "Row", "SoftPrompt",
        "TrainConfig", "TrainEvent", "read_examples", "train",
    ]  # fmt: skip
    for name in foreword.__all__:
        assert getattr(foreword, name).__module__.startswith("foreword.")


def test_the_version_is_the_changelogs() -> None:
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text()
    assert f"## {foreword.__version__}" in changelog


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom foreword.cli import app\n"
        "try:\n    app(['train', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
