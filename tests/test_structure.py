"""The shape of the package: what is public, and which module may know which."""

import ast
import subprocess
import sys
from pathlib import Path

import foreword

PACKAGE = Path(foreword.__file__).parent
# A module imports only modules before it.
ORDER = [
    "errors", "releases", "config", "history", "store", "row_files", "parts", "turns", "data",
    "encoding", "home_commands", "gguf_files", "models", "artifact", "states", "prompt",
    "initializers", "encoders", "capabilities", "identity", "layout", "placeholders", "media",
    "prefix", "compiled", "cache_layers", "caches", "recurrent", "arguments", "one_pass",
    "padding", "view", "generation", "ends", "decoder", "seq2seq", "seq2seq_generation",
    "proof", "media_proof", "quantized", "processors", "loading", "backbone", "recomputation",
    "compilation", "sharding", "lines", "label_layer", "packing", "guards", "loss", "methods",
    "stored_state", "train_state", "preparation", "probing", "distributed", "passes",
    "validation", "run", "memory", "training", "recipes", "curves", "chat", "ensembles",
    "metrics", "scores", "evaluation", "forgetting", "inspection", "plots", "harness", "doctor",
    "sampling", "slots", "state_cache", "request", "alone", "rows", "waiting", "row_pass",
    "engine", "server", "vllm_plugin", "cli",
]  # fmt: skip


def imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    parts = {name.split(".")[1] for name in found if name.startswith("foreword.")}
    return parts & set(ORDER)


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules | packages == set(ORDER)


def test_modules_import_only_modules_before_them() -> None:
    for path in PACKAGE.rglob("*.py"):
        name = path.stem if path.parent == PACKAGE else path.parent.name
        if name in ("__init__", "__main__"):
            continue
        allowed = ORDER[: ORDER.index(name) + (path.parent != PACKAGE)]
        assert imported(path) <= set(allowed), f"{path.name} imports a module after its own"


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
