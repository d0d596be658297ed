"""Write docs/contract.md: every case of the contract on foreword and on stock PEFT.

`python tests/support/contract_table.py` runs the cases and writes the page; with `--check` it
writes nothing and says whether the page on disk is what it found. Both fail where foreword neither
holds nor refuses.
"""

import argparse
import contextlib
import copy
import functools
import importlib.metadata
import inspect
import re
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import tiny_models
import torch
import transformers
from contract import CASES, GREEDY, ForewordSubject, Subject, World, world_of
from peft import PeftModel
from torch import Tensor

from foreword import SoftPrompt
from foreword.config import Form
from foreword.errors import UnsupportedError

PAGE = Path(__file__).parents[2] / "docs" / "contract.md"
FORMS: dict[Form, str] = {
    "embeddings": "Embedding prompts (PEFT: PROMPT_TUNING)",
    "key_values": "Key/value prompts (PEFT: PREFIX_TUNING)",
}
GROUPS = {
    "full attention": (
        "llama", "llama31", "qwen2", "qwen3", "phi3", "granite", "gpt2",
    ),
    "sliding and chunked attention": (
        "mistral", "gemma2", "gemma3", "olmo3", "gpt_oss", "llama4",
    ),
    "experts, latents, per-layer embeddings": (
        "mixtral", "qwen3_moe", "deepseek_v3", "kimi_k2", "gemma3n", "gemma4", "gemma4_moe",
    ),
    "recurrent layers": tiny_models.RECURRENT,
}  # fmt: skip
FAMILIES = tuple(family for group in GROUPS.values() for family in group)
assert set(FAMILIES) == set(tiny_models.FAMILIES)
FAIR_TOLERANCE = 1e-4  # of float32 logits
NUM_RACES = 30  # threads do not collide in every run
PADDING = "wrong p"

HEAD = """# The contract, measured

The contract says that fast equals slow. Here every case runs on a tiny random model of each
family, and is compared with the slow computation, the *oracle*: one unpadded row at a time,
explicit positions, no cache, everything computed again. Greedy tokens must be the oracle's.
Logits must agree to 1e-9 in float64, or, in families that themselves compute in float32
somewhere, to this number: {inexact}. kimi_k2 is deepseek_v3 with other proportions, and llama31
is llama with llama3's rotation. The tests run the same cases
(`tests/generation/test_contract.py`).

Made by `python tests/support/contract_table.py` with {versions}.

## How to read

A cell is *foreword* / *stock PEFT*.

- **holds**: the result is the oracle's.
- **refused**: foreword raises an `UnsupportedError` that says what to use instead.
- **wrong**: it ran without an exception, and the result is not the oracle's.
- **wrong** p: wrong only because of the padding; the same rows are right one at a time, unpadded.
- **raises**: an exception; its number is explained below the table (N stands for any number).

Stock PEFT gets the same prompt, which foreword saved and `PeftModel.from_pretrained` loaded on a
copy of the model, and the same arguments. Its `forward` also gets the position ids of the real
tokens. PEFT keeps prompts in float32, so it runs on the model in float32 and is compared with the
oracle of that model. Its logits must agree to 1e-4, or to ten times the number above if that is
larger.

{counts}
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
        self.directory = directory
        self.raised: list[Exception] = []

    @from_peft
    def generate(self, ids: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Any:
        return self.model.generate(input_ids=ids, attention_mask=mask, **kwargs)

    @from_peft
    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return plain_logits(self.model, ids, mask)

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


class OneByOne:
    """A subject whose batches run as single rows without padding."""

    def __init__(self, subject: Subject):
        self.subject = subject

    def generate(self, ids: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Any:
        if mask is None:
            return self.subject.generate(ids, mask, **kwargs)
        outputs = []
        for row, is_real in zip(ids, mask.bool(), strict=True):
            # A copy, so that every row has a cache of its own where the caller gives one.
            output = self.subject.generate(row[is_real][None], **copy.deepcopy(kwargs))
            outputs.append(torch.cat([row, output[0, int(is_real.sum()) :]]))
        return torch.stack(outputs)

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        rows = []
        for row, is_real in zip(ids, mask.bool(), strict=True):
            found = self.subject.logits(row[is_real][None], mask.new_ones(1, int(is_real.sum())))
            rows.append(
                found.new_zeros(len(row), found.shape[-1]).masked_scatter(
                    is_real[:, None], found[0]
                )
            )
        return torch.stack(rows)

    def generate_mixed(self, prompts: Sequence[Any], ids: Tensor, mask: Tensor) -> Tensor:
        return self.subject.generate_mixed(prompts, ids, mask)


class PlainSubject:
    """transformers alone, without any prompt: what of the rest is not PEFT's doing."""

    def __init__(self, model: Any):
        self.model = model

    def generate(self, ids: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Any:
        return self.model.generate(input_ids=ids, attention_mask=mask, **kwargs)

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return plain_logits(self.model, ids, mask)

    def generate_mixed(self, prompts: Sequence[Any], ids: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


def plain_logits(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return the logits `[B, T, V]` of a forward pass with the positions of the real tokens."""
    assert mask is not None
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions)
    logits: Tensor = output.logits[:, -ids.shape[1] :]
    return logits


@dataclass(frozen=True)
class Outcome:
    """What a subject did with a case.

    Attributes:
        word: of the table.
        reason: the exception, or how the result differs.
    """

    word: str
    reason: str = ""


HOLDS, WRONG = Outcome("holds"), Outcome("wrong")


def run_foreword(case: str, world: World) -> Outcome:
    """Run a case on foreword: "holds" or "refused"; anything else is a defect."""
    subject = ForewordSubject(world.model, world.prompt)
    try:
        CASES[case](subject, world)
    except UnsupportedError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("defect", f"{type(error).__name__}: {error}")
    return HOLDS


def run_peft(case: str, world: World) -> Outcome:
    """Run a case on stock PEFT, and one row at a time where a padded batch comes out wrong."""
    outcome = _run_peft(case, world, is_batched=True)
    for _ in range(NUM_RACES if case == "threads" else 0):
        if outcome == HOLDS:
            outcome = _run_peft(case, world, is_batched=True)
    # The rows of two turns cannot be taken apart; the turns of one row tell the rest.
    can_split = case not in ("threads", "multi_turn_padded")
    if outcome.word == "wrong" and can_split and _run_peft(case, world, is_batched=False) == HOLDS:
        return Outcome(PADDING)
    return outcome


def _run_peft(case: str, world: World, *, is_batched: bool) -> Outcome:
    assert world.prompt is not None
    with tempfile.TemporaryDirectory() as directory:
        try:
            subject = PeftSubject(world.model, world.prompt, Path(directory))
        except KeyError as error:  # a file that PEFT cannot read
            return Outcome("raises", in_short(error))
        try:
            CASES[case](subject if is_batched else OneByOne(subject), world)
        except (PeftError, AssertionError):
            # An exception in a thread reaches the case as a missing result.
            return Outcome("raises", in_short(subject.raised[0])) if subject.raised else WRONG
    return HOLDS


def run_plain(case: str, world: World) -> Outcome:
    """Run a case on transformers alone."""
    try:
        CASES[case](PlainSubject(world.model), World(world.model, None, world.tolerance))
    except AssertionError:
        return WRONG
    except Exception as error:
        return Outcome("raises", in_short(error))
    return HOLDS


def in_short(error: Exception) -> str:
    """Return an exception's class and the start of its message, numbers and addresses left out."""
    first = (str(error).strip().splitlines() or [""])[0]
    general = re.sub(r"(?<![a-w])\d+", "N", re.sub(r"\W*https?://.*|`", "", first))
    cut = general if len(general) <= 84 else general[:84].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {cut}"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence what PEFT and transformers say on the way; the table says what came of it."""
    transformers.logging.set_verbosity_error()
    with mock.patch.object(threading, "excepthook"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def float32_model(family: str) -> Any:
    """Return a family's shared model in float32."""
    return tiny_models.build(family).float()


def float32_world(family: str, world: World) -> World:
    """Return the same model and prompt in float32."""
    assert world.prompt is not None
    prompt = world.prompt.replaced([tensor.float() for tensor in world.prompt.tensors])
    tolerance = max(FAIR_TOLERANCE, 10 * tiny_models.TOLERANCES.get(family, 0.0))
    return World(float32_model(family), prompt, tolerance)


Cells = dict[tuple[str, str], Outcome]
Run = Callable[[str, World], Outcome]


def run_all(form: Form, run: Run) -> Cells:
    """Run every case in every family."""
    worlds = {family: world_of(family, form) for family in FAMILIES}
    return {(case, family): run(case, worlds[family]) for family in worlds for case in CASES}


def run_all_in_float32(form: Form, run: Run) -> Cells:
    """Run every case in every family on the same models and prompts in float32."""
    cells = {}
    for family in FAMILIES:
        world = float32_world(family, world_of(family, form))
        with mock.patch.object(tiny_models, "shared", float32_model):
            cells |= {(case, family): run(case, world) for case in CASES}
    return cells


@dataclass
class Measured:
    """The outcomes of every case in every family."""

    foreword: dict[Form, Cells] = field(default_factory=dict)
    peft: dict[Form, Cells] = field(default_factory=dict)
    plain: Cells = field(default_factory=dict)

    @property
    def defects(self) -> list[str]:
        """Every case in which foreword neither holds nor refuses."""
        return [
            f"{form}, {family}, {case}: {outcome.reason}"
            for form, cells in self.foreword.items()
            for (case, family), outcome in cells.items()
            if outcome.word not in ("holds", "refused")
        ]


def measure() -> Measured:
    """Run everything."""
    found = Measured()
    with quietly():
        found.foreword = {form: run_all(form, run_foreword) for form in FORMS}
        found.peft = {form: run_all_in_float32(form, run_peft) for form in FORMS}
        found.plain = run_all_in_float32("embeddings", run_plain)
    return found


def render(found: Measured) -> str:
    """Return the whole page."""
    names = ("torch", "transformers", "peft")
    # A local suffix such as "+cpu" says how torch was built, not what it computes.
    versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in names]
    cases = [f"- **{_words(name)}**: {_sentence(case)}" for name, case in CASES.items()]
    inexact = ", ".join(f"{name} {limit:g}" for name, limit in tiny_models.TOLERANCES.items())
    counts = _counts(found)
    parts = [HEAD.format(versions=", ".join(versions), inexact=inexact, counts=counts)]
    parts += [_tables(form, found) for form in FORMS]
    parts += ["\n## transformers alone\n\n", _plain(found.plain)]
    parts += ["\n## What each case is\n\n", "\n".join(cases), "\n"]
    return "".join(parts)


def _counts(found: Measured) -> str:
    lines = []
    for name, outcomes in (("foreword", found.foreword), ("Stock PEFT", found.peft)):
        words = Counter(o.word for cells in outcomes.values() for o in cells.values())
        counts = ", ".join(f"{count} {word}" for word, count in words.most_common())
        lines.append(f"{name}, of {words.total()} cells: {counts}.")
    return "\n".join(lines)


def _tables(form: Form, found: Measured) -> str:
    notes: list[str] = []
    parts = [f"\n## {FORMS[form]}\n"]
    for title, families in GROUPS.items():
        parts += [f"\n### {title.capitalize()}\n\n", _table(form, families, found, notes)]
    parts += ["\n", *(f"{number}. `{note}`\n" for number, note in enumerate(notes, 1))]
    return "".join(parts)


def _table(form: Form, families: tuple[str, ...], found: Measured, notes: list[str]) -> str:
    lines = [f"| case | {' | '.join(families)} |", "|---" * (len(families) + 1) + "|"]
    for case in CASES:
        cells = [
            f"{found.foreword[form][case, family].word} / "
            + _peft_cell(found.peft[form][case, family], notes)
            for family in families
        ]
        lines.append(f"| {_words(case)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _peft_cell(outcome: Outcome, notes: list[str]) -> str:
    if outcome.word != "raises":
        return outcome.word.replace("wrong", "**wrong**")
    if outcome.reason not in notes:
        notes.append(outcome.reason)
    return f"raises {notes.index(outcome.reason) + 1}"


def _plain(cells: Cells) -> str:
    """Say which cases transformers itself gets wrong, so that PEFT is not blamed for them."""
    lines = ["The same cases on the bare model, without a prompt, hold except these:\n\n"]
    for case in CASES:
        if case == "mixed_prompts":
            continue
        bad: dict[str, list[str]] = {}
        for family in FAMILIES:
            outcome = cells[case, family]
            bad.setdefault(f"{outcome.word} `{outcome.reason}`".replace(" ``", ""), []).append(
                family
            )
        bad.pop("holds", None)
        for what, families in bad.items():
            where = "every family" if len(families) == len(FAMILIES) else ", ".join(families)
            lines.append(f"- **{_words(case)}**: {what} in {where}\n")
    return "".join(lines)


def _words(case: str) -> str:
    return case.replace("_", " ")


def _sentence(case: Callable[..., None]) -> str:
    assert case.__doc__ is not None, f"{case.__name__} needs a docstring: it explains its row"
    return " ".join(inspect.cleandoc(case.__doc__).split())


def main() -> int:
    """Run everything, then write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the page, write nothing")
    arguments = parser.parse_args()
    found = measure()
    if found.defects:
        print("foreword neither holds nor refuses:", *found.defects, sep="\n  ")
        return 1
    page = render(found)
    if not arguments.check:
        PAGE.write_text(page)
    elif not PAGE.exists() or PAGE.read_text() != page:
        print(f"docs/contract.md is not what was measured; run: python {sys.argv[0]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
