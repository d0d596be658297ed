"""The shape of the package: what is public, and which room may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import foreword

PACKAGE = Path(foreword.__file__).parent
# A room, a folder or a module at the top, imports only itself and rooms before it.
ROOMS = [
    "errors", "lazy", "notebook", "compat", "os_calls", "storage", "config", "hub_files",
    "demo", "prompt", "data", "loading", "model", "generation", "verification", "backbone",
    "chat", "answering", "named_text", "llama_cpp", "export", "training", "engine",
    "engine_llama", "evaluation", "distillation", "doctor", "server", "vllm_plugin", "cli",
]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """Return a file's dotted name below the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_of(path) for path in FILES}


def room_of(name: str) -> str:
    """Return the room of a module, given by its dotted name below the package."""
    return name.split(".")[0]


def imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return {name.removeprefix("foreword.") for name in found if "foreword." in name} & NAMES


def is_for_types(node: ast.stmt) -> bool:
    """Return whether a statement is `if TYPE_CHECKING:`, whose imports never happen."""
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def test_every_module_has_its_room() -> None:
    assert {room_of(name) for name in NAMES} - {"__init__", "__main__"} == set(ROOMS)


def test_rooms_import_only_rooms_before_them() -> None:
    for path in FILES:
        name = module_of(path)
        if name in ("__init__", "__main__"):
            continue
        allowed = ROOMS[: ROOMS.index(room_of(name)) + 1]
        late = {other for other in imported(path) if room_of(other) not in allowed}
        assert not late, f"{name} imports {late}, of rooms after its own"


def test_no_room_has_a_circle() -> None:
    edges = {
        module_of(path): {one for one in imported(path) if one != room_of(module_of(path))}
        for path in FILES
        if path.name != "__init__.py"
    }
    left = {name: {one for one in others if one in edges} for name, others in edges.items()}
    while free := {name for name, others in left.items() if not others}:
        left = {name: others - free for name, others in left.items() if name not in free}
    assert not left, f"these import each other: {sorted(left)}"


def test_packages_import_nothing_eagerly() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            if is_for_types(node) or not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = {getattr(node, "module", None), *(name.name for name in node.names)}
            assert not {n for n in names if n and n.startswith("foreword")} - {"foreword.lazy"}, (
                path
            )


def classes() -> list[tuple[str, ast.ClassDef]]:
    """Return every class at the top of a module, with its module."""
    return [
        (module_of(path), node)
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    ]


def test_no_class_name_is_used_twice() -> None:
    places: dict[str, list[str]] = {}
    for module, node in classes():
        places.setdefault(node.name, []).append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_every_error_is_in_the_tree() -> None:
    import foreword.errors as tree

    known = {name for name in vars(tree) if name.endswith("Error")}
    for module, node in classes():
        bases = {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
        assert module == "errors" or not bases & known, f"{module}.{node.name}"


def test_transformers_own_names_are_in_the_adapter_alone() -> None:
    """What is no documented name of transformers is imported by one module."""
    documented = {"transformers", "transformers.utils"}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "transformers_api.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
                assert node.module in documented, f"{path}: {node.module}"
            if isinstance(node, ast.keyword):
                names = ("past_key_values", "cache_params", "cache")
                is_own = path.parent.name in ("generation", "verification")  # our own `generate`
                assert node.arg not in names or is_own, f"{path}: {node.arg}="


FACTORIES = (
    "arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm",
    "tensor", "zeros",
)  # fmt: skip


def test_no_tensor_is_made_where_a_user_has_set_the_default_device() -> None:
    for path in FILES:
        if path.parent.name == "vllm_plugin":  # vLLM itself sets it
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_torch = getattr(node.func.value, "id", None) == "torch"
                named = {one.arg for one in node.keywords} & {"device", None}
                is_made = is_torch and node.func.attr in FACTORIES
                assert named or not is_made, f"{path.name}:{node.lineno}: name the device"


def test_the_public_names_are_these() -> None:
    assert foreword.__all__ == [
        "Backbone", "DistillConfig", "EncodingConfig", "Example", "ForewordError", "Prefix", "Row",
        "SoftPrompt", "TrainConfig", "TrainEvent", "answer", "compose", "distill", "read_examples",
        "stream", "text_prompt", "train",
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


def loads(path: Path) -> list[ast.Call]:
    """Return the calls of a file that may load a checkpoint by transformers."""
    names = ("from_pretrained", "from_config")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        call
        for call in calls
        if getattr(call.func, "attr", "") in names
        and not getattr(call.func.value, "id", "").startswith("Peft")  # on a model in memory
    ]


def test_every_load_says_whether_code_may_run() -> None:
    """Without `trust_remote_code`, transformers asks on the terminal."""
    root = PACKAGE.parent
    others = [path for folder in ("benchmarks", "docs", "examples") for path in
              (root / folder).rglob("*.py")]  # fmt: skip
    for path in [*FILES, *others]:
        for call in loads(path):
            named = {word.arg for word in call.keywords}
            assert "trust_remote_code" in named, f"{path}: line {call.lineno}"


# What Windows or macOS lacks, or does otherwise; `os_calls` has each with its stand-in.
OF_POSIX = {
    "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "fsync", "fdatasync", "fork", "killpg", "setsid",
    "getuid", "geteuid", "getgid", "uname", "sched_getaffinity", "execv", "execve", "execvp",
    "execvpe", "statvfs", "mkfifo", "SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "setitimer",
    "SO_REUSEADDR", "SO_REUSEPORT", "AF_UNIX", "add_signal_handler", "getloadavg", "chown",
}  # fmt: skip
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
TEXT_CALLS = {"open": 3, "read_text": 0, "write_text": 1}  # and where an encoding stands


def of_posix(tree: ast.AST) -> set[str]:
    """Return what a module names of POSIX alone, folders of the system among it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in OF_POSIX:
            found.add(node.attr)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & POSIX_MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(alias.name for alias in node.names)} & (
                POSIX_MODULES | OF_POSIX
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {part for part in ("/proc/", "/dev/", "/tmp/") if node.value.startswith(part)}
    return found


def test_only_one_module_calls_what_posix_alone_has() -> None:
    found = {module_of(path): of_posix(ast.parse(path.read_text("utf-8"))) for path in FILES}
    assert {"fsync", "fcntl", "resource"} <= found.pop("os_calls")
    assert not {name: calls for name, calls in found.items() if calls}


def without_encoding(tree: ast.AST) -> set[int]:
    """Return the lines that read or write text by the system's own encoding."""
    return {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (place := TEXT_CALLS.get(called(node.func))) is not None
        and not is_binary(node)
        and len(node.args) <= place
        and all(keyword.arg != "encoding" for keyword in node.keywords)
    }


def called(function: ast.expr) -> str:
    """Return the name of what is called; nothing of calls that read no text by themselves."""
    if isinstance(function, ast.Name):
        return function.id if function.id != "read_text" else ""  # a data file's, by its own bytes
    if not isinstance(function, ast.Attribute):
        return ""
    is_other = function.attr == "open" and getattr(function.value, "id", "") in OPENERS
    return "" if is_other else function.attr


def is_binary(call: ast.Call) -> bool:
    """Return whether a mode such as "rb" is given."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [one.value for one in given if isinstance(one, ast.Constant)]
    return any(isinstance(mode, str) and {"b"} < set(mode) <= set("rwabx+") for mode in modes)


OPENERS = {"os", "Image", "wave", "opener", "gzip", "bz2", "lzma"}  # bytes, or no file


def test_every_text_is_read_and_written_as_utf_8() -> None:
    found = {
        module_of(path): without_encoding(ast.parse(path.read_text("utf-8"))) for path in FILES
    }
    assert not {name: lines for name, lines in found.items() if lines}
    assert without_encoding(ast.parse("open('a'); Path('b').read_text(); p.write_text('c')")) == {1}
