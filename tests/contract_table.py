"""Write docs/contract.md: every case of the contract on foreword and on stock PEFT.

`python tests/contract_table.py` runs the cases and writes the page; with `--check` it writes nothing
and says whether the page on disk is what it found. It fails where foreword neither holds nor refuses.
"""

import argparse
import contextlib
import copy
import functools
import importlib.metadata
import inspect
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tiny_models
import torch
import transformers
from contract import CASES, GREEDY, ForewordSubject, World, world_of
from peft import PeftModel
from torch import Tensor

from foreword import SoftPrompt
from foreword.config import Form
from foreword.errors import UnsupportedError

PAGE = Path(__file__).parent.parent / "docs" / "contract.md"
FORMS: dict[Form, str] = {
    "embeddings": "Embedding prompts (PEFT: PROMPT_TUNING)",
    "key_values": "Key/value prompts (PEFT: PREFIX_TUNING)",
}
# PEFT holds prompts in float32, so in a float64 model it is asked for float32's exactness only.
FAIR_TOLERANCE = 1e-4

HEAD = """# The contract, measured

Every case runs on a tiny random model of each family and is compared with the oracle: one unpadded
row at a time, explicit positions, no cache, everything computed again. Greedy tokens must be the
oracle's; logits must agree to 1e-9 in float64 (gemma2: 1e-5, its attention computes in float32).

Made by `python tests/contract_table.py` with {versions}.

## How to read

A cell is *foreword* / *stock PEFT*.

- **holds**: the result is the oracle's. PEFT is asked for agreement to 1e-4 only, because it keeps
  prompts in float32.
- **refused**: foreword raises an `UnsupportedError` that says what to use instead.
- **wrong**: it ran without an error, and the result is not the oracle's.
- **raises**: an exception; the number leads to it below the table.

Stock PEFT gets the same prompt, saved by foreword and loaded with `PeftModel.from_pretrained` on a
copy of the model, and the same arguments; its `forward` also gets the position ids of the real
tokens.
"""


class PeftError(Exception):
    """An exception that came out of stock PEFT: its cause."""


def from_peft(method: Callable[..., Any]) -> Callable[..., Any]:
    """Tell what PEFT raises from what a case raises when the result differs."""

    @functools.wraps(method)
    def wrapper(self: "PeftSubject", *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.raised.append(error)
            raise PeftError from error

    return wrapper


class PeftSubject:
    """Stock PEFT on a copy of a model, behind one prompt."""

    def __init__(self, model: Any, prompt: SoftPrompt, directory: Path):
        base = copy.deepcopy(model)
        # One embedding module for both: the cases count passes at the original model's.
        base.set_input_embeddings(model.get_input_embeddings())
        prompt.save(directory / "own")
        self.model = PeftModel.from_pretrained(base, directory / "own").eval()
        self.prompt, self.directory = prompt, directory
        self.raised: list[Exception] = []

    @from_peft
    def generate(self, ids: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Any:
        return self.model.generate(input_ids=ids, attention_mask=mask, **kwargs)

    @from_peft
    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions)
        logits: Tensor = output.logits[:, -ids.shape[1] :]
        return logits

    @from_peft
    def generate_mixed(self, prompts: Sequence[Any], ids: Tensor, mask: Tensor) -> Tensor:
        names = []
        for index, prompt in enumerate(prompts):
            names.append("__base__" if prompt is None else f"prompt{index}")
            if prompt is not None:
                prompt.save(self.directory / names[-1])
                self.model.load_adapter(self.directory / names[-1], names[-1])
        output: Tensor = self.model.generate(
            input_ids=ids, attention_mask=mask, adapter_names=names, **GREEDY
        )
        return output


@dataclass(frozen=True)
class Outcome:
    """What a subject did with a case.

    Attributes:
        word: of the table.
        reason: the exception, or how the result differs.
    """

    word: str
    reason: str = ""


def run_foreword(case: str, world: World) -> Outcome:
    """Run a case on foreword: "holds" or "refused"; anything else is a defect."""
    assert world.prompt is not None
    subject = ForewordSubject(world.model, world.prompt)
    try:
        CASES[case](subject, world)
    except UnsupportedError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("differs", name_of(error))
    return Outcome("holds")


def run_peft(case: str, world: World) -> Outcome:
    """Run a case on stock PEFT."""
    assert world.prompt is not None
    world = replace(world, tolerance=max(world.tolerance, FAIR_TOLERANCE))
    with tempfile.TemporaryDirectory() as directory:
        subject = PeftSubject(world.model, world.prompt, Path(directory))
        try:
            CASES[case](subject, world)
        except (PeftError, AssertionError) as error:
            # An exception in a thread reaches the case as a missing result.
            if subject.raised:
                return Outcome("raises", name_of(subject.raised[0]))
            return Outcome("wrong", name_of(error))
    return Outcome("holds")


def name_of(error: Exception) -> str:
    """Return an exception's class and the start of its first line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first if len(first) <= 90 else first[:87] + '...'}"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence what PEFT and transformers say on the way; the table says what came of it."""
    hook = threading.excepthook
    threading.excepthook = lambda _: None
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        threading.excepthook = hook


@dataclass
class Table:
    """The outcomes of one prompt form, case by family."""

    form: Form
    cells: dict[tuple[str, str], tuple[Outcome, Outcome]] = field(default_factory=dict)

    @classmethod
    def run(cls, form: Form) -> "Table":
        """Run every case on both subjects."""
        table = cls(form)
        for family in tiny_models.FAMILIES:
            world = world_of(family, form)
            for case in CASES:
                table.cells[case, family] = run_foreword(case, world), run_peft(case, world)
        return table

    @property
    def defects(self) -> list[str]:
        """Every case in which foreword neither holds nor refuses."""
        return [
            f"{self.form}, {family}, {case}: {ours.reason}"
            for (case, family), (ours, _) in self.cells.items()
            if ours.word not in ("holds", "refused")
        ]

    def render(self) -> str:
        """Return the table and its exceptions as Markdown."""
        families = tiny_models.FAMILIES
        notes: list[str] = []
        lines = [f"\n## {FORMS[self.form]}\n", f"| case | {' | '.join(families)} |"]
        lines.append("|---" * (len(families) + 1) + "|")
        for case in CASES:
            cells = [_cell(*self.cells[case, family], notes) for family in families]
            lines.append(f"| {_words(case)} | {' | '.join(cells)} |")
        lines += ["", *(f"{number}. `{note}`" for number, note in enumerate(notes, 1))]
        return "\n".join(lines) + "\n"


def _cell(ours: Outcome, theirs: Outcome, notes: list[str]) -> str:
    if theirs.word != "raises":
        word = f"**{theirs.word}**" if theirs.word == "wrong" else theirs.word
        return f"{ours.word} / {word}"
    if theirs.reason not in notes:
        notes.append(theirs.reason)
    return f"{ours.word} / raises {notes.index(theirs.reason) + 1}"


def _words(case: str) -> str:
    return case.replace("_", " ")


def render(tables: Sequence[Table]) -> str:
    """Return the whole page."""
    names = ("torch", "transformers", "peft")
    # A local suffix such as "+cpu" says how torch was built, not what it computes.
    found = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in names]
    cases = [f"- **{_words(name)}**: {_sentence(case)}" for name, case in CASES.items()]
    return "".join(
        [
            HEAD.format(versions=", ".join(found)),
            *(table.render() for table in tables),
            "\n## What each case is\n\n",
            "\n".join(cases) + "\n",
        ]
    )


def _sentence(case: Callable[..., None]) -> str:
    assert case.__doc__ is not None, f"{case.__name__} needs a docstring: it explains its row"
    return " ".join(inspect.cleandoc(case.__doc__).split())


def main() -> int:
    """Run everything, then write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the page, write nothing")
    arguments = parser.parse_args()
    with quietly():
        tables = [Table.run(form) for form in FORMS]
    defects = [defect for table in tables for defect in table.defects]
    if defects:
        print("foreword neither holds nor refuses:", *defects, sep="\n  ")
        return 1
    page = render(tables)
    if not arguments.check:
        PAGE.write_text(page)
    elif not PAGE.exists() or PAGE.read_text() != page:
        print("docs/contract.md is not what was measured; run: python tests/contract_table.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
