"""Write docs/architecture.md, and the tree of rooms at the end of README.md, from the code itself.

    python docs/make_architecture.py [--check]

Rooms, their contracts and the first sentences of modules are the docstrings; the order of the rooms
is the list that tests/test_structure.py enforces. A walk names functions: one that is not there is
an error.
"""

import ast
import sys
from pathlib import Path

from page import write_or_check

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "foreword"
PAGE, README = ROOT / "docs" / "architecture.md", ROOT / "README.md"
STRUCTURE = ROOT / "tests" / "test_structure.py"
BEGIN, END = "<!-- rooms: python docs/make_architecture.py -->\n", "<!-- end of rooms -->\n"

HEAD = """# Architecture

Made from the docstrings by `make docs`; `make check` compares. The package is a house of rooms,
each one chapter of the story of the data. A room imports only rooms above it in this list
(`tests/test_structure.py` enforces it), so reading from the top never meets an unknown name.

"""

# What a room is, in half a line, where the first sentence of its docstring would be longer.
HALF_LINES = {
    "errors": "the exception tree, with exit codes and HTTP statuses",
    "lazy": "names that a package imports at first use",
    "notebook": "prompts, results and a bar in a notebook",
    "compat": "supported releases of transformers",
    "os_calls": "what only some systems have, with a stand-in",
    "storage": "files that appear whole, or not at all",
    "config": "every option once, with its default and help",
    "hub_files": "files of a repository on the Hub, by name",
    "demo": "the home commands of `make demo`",
    "prompt": "soft prompts, prefixes, PEFT's files, the store",
    "data": "a file of rows to token ids with labels, and to batches",
    "loading": "a name, directory, Hub id or GGUF file to a model",
    "model": "what a family is; positions, masks, caches, one forward pass",
    "generation": "transformers' own `generate`, behind prefixes",
    "verification": "the self-test of a family that no test covers",
    "backbone": "one frozen model: embeds, compiles, generates, scores",
    "chat": "the same for text: encode, answer, stream",
    "answering": "text in, text out, in one call",
    "named_text": "a long instruction as a prompt, exactly",
    "llama_cpp": "llama.cpp's library: passes, sequences, their states",
    "export": "a prompt for other engines, in their own files",
    "training": "the optimizer step, the loop, methods, packing, resume",
    "engine": "continuous batching: scheduler, KV cache, prefix cache",
    "engine_llama": "the same requests over llama.cpp, on a GGUF file",
    "evaluation": "scores with intervals, ensembles, plots, lm-eval",
    "distillation": "a long text taught to a small prompt",
    "doctor": "an installation, a model, a prompt to findings",
    "server": "OpenAI-compatible HTTP over the engine, and its page",
    "vllm_plugin": "the same prompts on an unmodified vLLM",
    "cli": "parse, call, print",
}

NOTATION = """## Notation

`B` rows of a batch · `P` virtual tokens · `T` real tokens of a row · `H` hidden size · `V`
vocabulary · `L` layers · `N` key/value heads · `D` head size. Capitals are dimensions only: a soft
prompt is `[P, H]`, or keys and values `[N, P, D]` for each layer.

## Glossary

| word | meaning |
|---|---|
| virtual token | one of the `P` learned vectors that stand before the text |
| soft prompt | virtual tokens, as embeddings or as each layer's keys and values, with facts |
| facts | what a prompt's file says of it: base, encoding, options, metrics |
| compile a prompt | run its virtual tokens once and keep what the model's cache then holds |
| prefix | that state: what a row starts from, at no further cost |
| deferred prompt | virtual tokens that run with each row, because their state depends on it |
| label | a token that is learned: of the answer, or what closes it |
| micro-batch | the rows of one forward and backward pass; a step adds up several |
| packing | rows of a micro-batch one behind the other in one sequence, without padding |
| prefill | running given tokens, which fills the KV cache |
| decode | running one new token of each row |
| KV cache | each layer's keys and values of the tokens so far |
| prefix cache | kept states of prompts and conversations, so that they need no prefill |
| continuous batching | requests join and leave the batch between steps |
| oracle | one unpadded row, concatenated embeddings, no cache, all of it computed anew |
| exact | greedy tokens identical to the oracle's, logits within 1e-9 in float64, 2e-4 in float32 |
| backbone | one frozen model with all that prompts need of it |
| view | a copy of a model's outermost object over the same weights; the model is never patched |

"""

Walk = list[tuple[str, str, str]]
# A sentence, the file and the function where it happens.
WALKS: dict[str, Walk] = {
    "A training row to its gradient": [
        ("a line of the file becomes an `Example`", "data/examples.py", "read_examples"),
        ("the example becomes a `Row` of ids with labels", "data/encoding.py", "encode_examples"),
        ("the rows of a step become micro-batches", "training/micro_batches.py", "micro_batches"),
        ("the prefix is computed once, with gradient", "training/step.py", "prefix_states"),
        ("the states before labels give the loss", "training/loss.py", "score_labels"),
        ("the step: rows, then prefix, backwards; then the optimizer", "training/step.py",
         "train_step"),
    ],
    "One `generate` call": [
        ("prompts are compiled, equal ones once", "backbone.py", "Backbone.batch_of"),
        ("padding moves to the left, media are found", "generation/generate.py", "generate"),
        ("a view of the model takes the call", "generation/model_view.py", "decoder_view"),
        ("its cache starts from the prefixes", "model/prefixed_cache.py", "start"),
        ("each pass gets positions and masks behind them", "model/forward.py", "model_inputs"),
        ("sequences come back as they were given", "generation/padding.py", "restore"),
    ],
    "A chat request to its stream": [
        ("the key and the size of the body are checked", "server/middleware.py",
         "AccessMiddleware"),
        ("the body is checked, the prompt found by name", "server/routes.py", "chat_completions"),
        ("messages become ids as its training encoded them", "chat.py", "encode"),
        ("the request waits, then has a place in the batch", "engine/scheduler.py",
         "Scheduler.next_admitted"),
        ("one step: admit, decode, prefill, sample, retire", "engine/engine.py", "Engine.step"),
        ("ids become text, pieces become events", "server/sse.py", "events"),
    ],
    "A saved prompt to a prefix": [
        ("a name or an alias is resolved", "prompt/store.py", "Store.resolve"),
        ("two files are opened and verified", "prompt/stored_prompt.py", "read"),
        ("PEFT's layout becomes tensors by layer", "prompt/peft_format.py", "from_adapter"),
        ("they are a prompt, with what its file says", "prompt/soft_prompt.py",
         "SoftPrompt.load"),
        ("its base is compared with the model", "model/fingerprint.py", "check_fingerprint"),
        ("it is compiled, or found by its content", "backbone.py", "Backbone.compile"),
    ],
}  # fmt: skip


def rooms() -> list[str]:
    """Return the rooms in their order: the constant `ROOMS` of the test that enforces it."""
    for node in ast.parse(STRUCTURE.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ROOMS":
            return list(ast.literal_eval(node.value))
    raise SystemExit(f"{STRUCTURE}: no list ROOMS")


def docstring(path: Path) -> str:
    """Return a module's docstring."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a module's docstring, without its full stop."""
    return " ".join(docstring(path).partition("\n\n")[0].split()).rstrip(".")


def modules(room: str) -> list[Path]:
    """Return the files of a room, folders inside it after its own."""
    if not (PACKAGE / room).is_dir():
        return [PACKAGE / f"{room}.py"]
    found = sorted((PACKAGE / room).rglob("*.py"), key=lambda path: (len(path.parts), path))
    return [path for path in found if path.name != "__init__.py"]


def room_part(room: str) -> str:
    """Return what the page says of one room."""
    folder = PACKAGE / room
    if not folder.is_dir():
        contract = docstring(PACKAGE / f"{room}.py")
        return f"### `{room}.py`\n\n{_paragraphs(contract)}\n"
    lines = [f"### `{room}/`\n\n{_paragraphs(docstring(folder / '__init__.py'))}\n"]
    lines.append("| module | what it is |\n|---|---|")
    for path in modules(room):
        lines.append(f"| `{path.relative_to(folder)}` | {first_sentence(path)} |")
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> str:
    """Return a docstring without its drawings: the paragraphs that are not indented."""
    parts = [part for part in text.split("\n\n") if not part.startswith(" ")]
    return "\n\n".join(" ".join(part.split()) for part in parts)


def walk(name: str, steps: Walk) -> str:
    """Return a walk as a list of steps, each with its file and function."""
    lines = [f"### {name}\n"]
    for number, (said, file, function) in enumerate(steps, 1):
        _check_there(file, function)
        lines.append(f"{number}. {said}: `{file}`, `{function}`")
    return "\n".join(lines) + "\n"


def _check_there(file: str, function: str) -> None:
    scope: ast.AST = ast.parse((PACKAGE / file).read_text())
    for name in function.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = [n for n in ast.iter_child_nodes(scope) if isinstance(n, kinds) and n.name == name]
        if not found:
            raise SystemExit(f"docs/make_architecture.py: {file} has no {function}")
        scope = found[0]


def page() -> str:
    """Return docs/architecture.md."""
    parts = [HEAD, "## Rooms\n\n", *(room_part(room) + "\n" for room in rooms())]
    parts += [NOTATION, "## Four walks\n\n"]
    parts += [walk(name, steps) + "\n" for name, steps in WALKS.items()]
    return "".join(parts).rstrip() + "\n"


def tree() -> str:
    """Return the rooms as they stand at the end of the README, half a line each."""
    names = [room if (PACKAGE / f"{room}.py").exists() else f"{room}/" for room in rooms()]
    names = [name if name.endswith("/") else f"{name}.py" for name in names]
    width = max(map(len, names))
    lines = [
        f"{name:<{width}}  {HALF_LINES[name.removesuffix('/').removesuffix('.py')]}"
        for name in names
    ]
    return BEGIN + "```\n" + "\n".join(lines) + "\n```\n" + END


def main() -> int:
    """Write both, or say whether they are current."""
    complaint = "is not what the code says; run: python docs/make_architecture.py"
    readme = README.read_text()
    before, rest = readme.split(BEGIN)
    new = before + tree() + rest.split(END)[1]
    return write_or_check(PAGE, page(), complaint) | write_or_check(README, new, complaint)


if __name__ == "__main__":
    sys.exit(main())
