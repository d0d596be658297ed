"""Compatibility matrix of stock PEFT and transformers: measured by pairs of releases, and its page.

    python docs/make_peft_table.py                writes docs/peft-and-transformers.md from the data
    python docs/make_peft_table.py --check        says whether that page is current
    python docs/make_peft_table.py --measure      measures the installed pair, updates the data
    python docs/make_peft_table.py --all FOLDER   unpacks all pairs into FOLDER and measures them

In: the installed releases, or pip. Out: foreword/doctor/stock_peft_releases.json, and the page.
Measuring knows nothing of foreword: the oracle is transformers' own forward pass over one unpadded
row, with the prompt before it and everything computed again for every token.
"""

import argparse
import copy
import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from page import write_or_check
from torch import Tensor

FOLDER = Path(__file__).parent
PAGE = FOLDER / "peft-and-transformers.md"
DATA = FOLDER.parent / "foreword" / "doctor" / "stock_peft_releases.json"
PEFT = ("0.19", "0.20", "0.21")  # of each, its newest patch
TRANSFORMERS = ("5.16.0", "5.20.0", "5.23.0", "5.24.0")

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 3, 4, 2, 8
VOCAB_SIZE, NUM_VIRTUAL, NUM_NEW = 97, 5, 8
ROW = torch.arange(1, 13) * 31 % VOCAB_SIZE
NEXT = torch.tensor([5, 50, 23])
OPTIONS: dict[str, Any] = {
    "max_new_tokens": NUM_NEW, "do_sample": False, "pad_token_id": 0,
    "eos_token_id": VOCAB_SIZE, "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip

Rows = list[Tensor]
Output = tuple[Rows, Any]  # the rows as they were given, and what was generated from them


class Trial:
    """One prompt on one tiny model: rows `[T]` through `generate`, and the oracle's answers.

    Attributes:
        bare: the model without a prompt.
        prompt: embeddings `[P, H]`, keys and values `[N, 2, K, P, D]`, or None.
        model: what generates: PEFT's model, or the bare one where there is no prompt.
    """

    def __init__(self, form: str | None) -> None:
        import transformers

        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=NUM_HEADS * HEAD_SIZE, intermediate_size=48,
            num_hidden_layers=NUM_LAYERS, num_attention_heads=NUM_HEADS,
            num_key_value_heads=NUM_KV_HEADS, max_position_embeddings=256, initializer_range=0.3,
        )  # fmt: skip
        self.bare = transformers.LlamaForCausalLM(config).double().eval()
        self.prompt: Tensor | None = None
        self.model: Any = self.bare
        if form == "embeddings":
            self.prompt = torch.randn(NUM_VIRTUAL, NUM_HEADS * HEAD_SIZE).double()
        elif form == "key_values":
            shape = (NUM_LAYERS, 2, NUM_KV_HEADS, NUM_VIRTUAL, HEAD_SIZE)
            self.prompt = 2 * torch.randn(shape).double()
        if self.prompt is not None:
            self.model = _with_peft(copy.deepcopy(self.bare), self.prompt)
        parameters = inspect.signature(self.bare.forward).parameters
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"

    def run(self, rows: Rows, **options: Any) -> Output:
        """Generate from rows, left-padded where they differ in length."""
        width = max(len(row) for row in rows)
        ids = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in rows])
        mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
        return rows, self.model.generate(input_ids=ids, attention_mask=mask, **(OPTIONS | options))

    def oracle(self, row: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the greedy tokens `[N]` behind a row, and their logits `[N, V]`."""
        ids, steps = row, []
        for _ in range(NUM_NEW):
            steps.append(self._last_logits(ids, prompt))
            ids = torch.cat([ids, steps[-1].argmax()[None]])
        return ids[len(row) :], torch.stack(steps)

    @torch.no_grad()
    def _last_logits(self, ids: Tensor, prompt: Tensor | None) -> Tensor:
        """Return the logits `[V]` behind ids `[T]`, all of it computed anew."""
        from transformers import DynamicCache

        if prompt is None or prompt.dim() == 2:
            text = self.bare.get_input_embeddings()(ids)
            whole = text if prompt is None else torch.cat([prompt, text])
            return self.bare(inputs_embeds=whole[None], use_cache=False).logits[0, -1]
        cache = DynamicCache()
        for index, (keys, values) in enumerate(prompt):
            cache.update(keys[None], values[None], index)
        positions = torch.arange(NUM_VIRTUAL, NUM_VIRTUAL + len(ids))[None]
        given = {self.cache_name: cache, "position_ids": positions}
        return self.bare(input_ids=ids[None], **given).logits[0, -1]

    def verdict(self, case: Callable[["Trial"], Output]) -> str:
        """Return what one case comes to, in the words of the data."""
        try:
            rows, output = case(self)
        except Exception as error:
            return f"raises {type(error).__name__}"
        tokens = output.sequences[:, -NUM_NEW:]
        steps = torch.stack(output.logits, 1)
        found = [self.oracle(row, self.prompt) for row in rows]
        bare = torch.stack([self.oracle(row, None)[0] for row in rows])
        own, logits = (torch.stack(one) for one in zip(*found, strict=True))
        assert self.prompt is None or not (own == bare).all(1).any(), "the prompt moves no answer"
        if tokens.equal(own) and torch.allclose(steps.double(), logits, rtol=0, atol=1e-4):
            return "right"
        return "wrong: the bare model" if tokens.equal(bare) else "wrong"


def _with_peft(model: Any, prompt: Tensor) -> Any:
    """Return stock PEFT's model around a prompt."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    is_prefix = prompt.dim() > 2
    kind = PrefixTuningConfig if is_prefix else PromptTuningConfig
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL)
    wrapped = get_peft_model(model, config).eval()
    # PEFT keeps keys and values as [P, N * 2 * K * D].
    table = prompt.permute(3, 0, 1, 2, 4).flatten(1) if is_prefix else prompt
    weight = wrapped.prompt_encoder["default"].embedding.weight
    assert weight.shape == table.shape
    weight.data = table.clone()
    return wrapped


def _second_turn(trial: Trial) -> Output:
    _, first = trial.run([ROW])
    row = torch.cat([first.sequences[0], NEXT])
    return trial.run([row], **{trial.cache_name: getattr(first, trial.cache_name)})


def _prompt_lookup(trial: Trial) -> Output:
    """Continue a row that repeats itself after its answer, so that lookup finds proposals."""
    row = torch.cat([ROW, trial.oracle(ROW, trial.prompt)[0], ROW])
    return trial.run([row], prompt_lookup_num_tokens=3)


CASES: dict[str, Callable[[Trial], Output]] = {
    "one row": lambda trial: trial.run([ROW]),
    "left-padded batch": lambda trial: trial.run([ROW, ROW[:5]]),
    "static cache": lambda trial: trial.run([ROW], cache_implementation="static"),
    "chunked prefill": lambda trial: trial.run([ROW], prefill_chunk_size=6),
    "second turn on the returned cache": _second_turn,
    "assisted decoding": lambda trial: trial.run([ROW], assistant_model=copy.deepcopy(trial.bare)),
    "prompt lookup": _prompt_lookup,
    "without cache": lambda trial: trial.run([ROW], use_cache=False),
}


def measure() -> dict[str, Any]:
    """Return every verdict on the installed pair, or why it cannot be imported."""
    pair: dict[str, Any] = {
        name: metadata.version(name) for name in ("peft", "transformers", "torch")
    }
    warnings.simplefilter("ignore")  # PEFT warns on right and on wrong results alike
    try:
        import peft  # noqa: F401
        import transformers
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        return pair | {"error": f"{type(error).__name__}: {first}"}
    transformers.utils.logging.set_verbosity_error()
    for name, case in CASES.items():
        found = Trial(None).verdict(case)
        assert found == "right", f"transformers alone: {name}: {found}"
    for form in ("embeddings", "key_values"):
        pair[form] = {name: Trial(form).verdict(case) for name, case in CASES.items()}
    return pair


def update_data(pair: dict[str, Any]) -> None:
    """Put a pair into the data, in the place of an older patch of it; the newest pair is first."""
    pairs = json.loads(DATA.read_text()) if DATA.exists() else []
    pairs = [one for one in pairs if _release(one) != _release(pair)] + [pair]
    pairs.sort(key=_release, reverse=True)
    DATA.write_text(json.dumps(pairs, indent=1) + "\n")


def _release(pair: dict[str, Any]) -> list[tuple[int, ...]]:
    """Return major and minor of both: a pair's place and identity in the data."""
    names = ("transformers", "peft")
    return [tuple(map(int, pair[name].split(".")[:2])) for name in names]


def measure_all(folder: Path) -> None:
    """Unpack every release into a folder, and measure each pair in a process of its own."""
    for transformers in TRANSFORMERS:
        # With what it requires, since older releases want an older huggingface_hub; torch is not.
        first = _unpacked(folder, f"transformers=={transformers}")
        for peft in PEFT:
            second = _unpacked(folder, f"peft=={peft}.*", "--no-deps")
            path = {"PYTHONPATH": os.pathsep.join((str(second), str(first)))}
            print(f"peft {peft}, transformers {transformers}", flush=True)
            subprocess.run(
                [sys.executable, __file__, "--measure"], env=os.environ | path, check=True
            )


def _unpacked(folder: Path, requirement: str, *options: str) -> Path:
    target = folder.resolve() / requirement.replace("==", "-").removesuffix(".*")
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-warn-conflicts"]
        subprocess.run([*command, *options, "--target", str(target), requirement], check=True)
    return target


HEAD = """\
# Stock PEFT under pairs of releases

This page shows what PEFT's own `generate` does with a soft prompt, for pairs of releases of PEFT
and transformers.

**The newest failure without an exception: {newest}.**

Each cell is one case on a tiny random llama in float64, greedy, {num_new} new tokens, compared with
an oracle: transformers' own forward pass over one unpadded row, with the prompt before it, no
cache, and everything computed again for every token. On the same cases transformers alone, without
a prompt, is right.

- **right**: the oracle's tokens, and its logits.
- **wrong**: it ran without an exception, and the tokens or logits are others.
- **wrong: the bare model**: it ran without an exception, and the tokens are exactly those of the
  model without the prompt.
- **raises**: an exception, by its name.

How a case fails can depend on the model and the lengths. For example, assisted decoding of prompt
tuning is wrong here, but raises if other candidates of the assistant are accepted. In models with
sliding layers, prefix tuning is wrong in left-padded batches, too ([contract.md](contract.md)).

foreword is right in all of these cases ([contract.md](contract.md)), and reads the same files:
`SoftPrompt.load(directory)`. `foreword doctor` says which pair is installed, and what goes wrong
with it.
"""
NAMES = """
## Why transformers 5.24 breaks both

transformers 5.24 calls the cache `cache` where older releases say `past_key_values`. PEFT 0.19 to
0.21 look for it by the old name, find none, and take every step of `generate` for the first one:

- Prefix tuning hands its keys and values over as `past_key_values`, beside the empty `cache` of
  `generate`. transformers keeps the second and drops the first; a `FutureWarning` on two names of
  one argument is all that it says.
- Prompt tuning puts its embeddings before every new token again, not only before the text.

If you stay with PEFT, there are two partial cures. An older transformers
(`pip install 'transformers<5.24'`) gives the rows of 5.23 above. `use_cache=False` makes prompt
tuning right, one row at a time, but every new token then reads prompt and text again; it does not
help prefix tuning. Or generate with foreword.
"""
REPEAT = """
## Repeat it

```
python docs/make_peft_table.py --measure      # the installed pair, into the data
python docs/make_peft_table.py --all FOLDER   # every pair, each unpacked into FOLDER by pip
python docs/make_peft_table.py                # this page, from the data
```

The data is `foreword/doctor/stock_peft_releases.json`; `foreword doctor` reads it too, and runs
the cases on your own model and prompt: `foreword doctor --model MODEL --prompt DIRECTORY`.
"""
SEED = """
## The KeyError of an empty cache

`{error}`

{text}"""


def render() -> str:
    """Return the page: the newest failure in words, both tables, the commands, the old KeyError."""
    from foreword.doctor import SEED_FAILURE
    from foreword.doctor.peft_releases import FORMS, measured_pairs

    pairs = measured_pairs()
    found = [f"{pair}: {words}" for pair in pairs for words in pair.failures()]
    newest = next(words for words in found if "without an exception" in words)
    parts = [HEAD.format(newest=newest, num_new=NUM_NEW)]
    for form, name in FORMS.items():
        parts.append(f"\n## {name[0].upper()}{name[1:]}\n\n")
        parts.append(_line(["PEFT", "transformers", *CASES]) + _line(["---"] * (len(CASES) + 2)))
        for pair in pairs:
            cells = [_cell(pair.verdicts[form][case]) for case in CASES] if pair.verdicts else []
            parts.append(_line([pair.peft, pair.transformers, *(cells or [pair.error])]))
    error, text = SEED_FAILURE.split("\n\n", 1)
    text = text.replace(" past_key_values[0][0]", " `past_key_values[0][0]`")  # no link
    return "".join([*parts, NAMES, REPEAT, SEED.format(error=error, text=text)])


def _line(cells: list[Any]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _cell(verdict: str) -> str:
    if verdict.startswith("raises"):
        return verdict.replace(" ", " `", 1) + "`"
    return f"**{verdict}**" if verdict.startswith("wrong") else verdict


def main() -> int:
    """Measure what is asked for; write the page, or say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.measure:
        update_data(measure())
        return 0
    if options.all:
        measure_all(options.all)
    return write_or_check(PAGE, render(), "is not what was measured; run: make docs")


if __name__ == "__main__":
    sys.exit(main())
