"""Compatibility matrix: what stock PEFT does with soft prompts under each measured pair.

In: the package's data, which docs/make_peft_table.py measures. Out: pairs of a release of PEFT and
one of transformers, and what is wrong in a pair, in words. Imports neither of them, and no torch.
"""

import functools
import json
from dataclasses import dataclass, field
from importlib.resources import files

from packaging.version import Version

FORMS = {"embeddings": "prompt tuning", "key_values": "prefix tuning"}
# The verdicts that are failures, the worst first, and what is said of a form's cases with one.
FAILURES = {
    "wrong: the bare model": "answers as the bare model, without an exception",
    "wrong": "is wrong without an exception",
    "raises": "raises",
}


@dataclass(frozen=True)
class Pair:
    """A release of PEFT with one of transformers.

    Attributes:
        verdicts: by form and case: "right", "wrong", "wrong: the bare model" or "raises NAME".
        error: why the two cannot be imported together; there are no verdicts then.
    """

    peft: str
    transformers: str
    verdicts: dict[str, dict[str, str]] = field(default_factory=dict)
    error: str | None = None

    def __str__(self) -> str:
        return f"PEFT {self.peft} with transformers {self.transformers}"

    @property
    def releases(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Major and minor of transformers, then of PEFT."""
        return release(self.transformers), release(self.peft)

    def failures(self) -> list[str]:
        """Return what goes wrong, in words, the worst first: a lost prompt, wrong, an exception."""
        if self.error is not None:
            return [f"the two cannot be imported together: {self.error}"]
        found = []
        for kind, words in FAILURES.items():
            for form, name in FORMS.items():
                cases = [
                    case for case, verdict in self.verdicts[form].items() if _is(kind, verdict)
                ]
                if cases:
                    found.append(f"{name} {words} ({', '.join(cases)})")
        return found


def _is(kind: str, verdict: str) -> bool:
    return verdict.split()[0] == kind if kind == "raises" else verdict == kind


def release(version: str) -> tuple[int, ...]:
    """Return major and minor, which are all that a pair is known by."""
    return Version(version).release[:2]


@functools.cache
def measured_pairs() -> tuple[Pair, ...]:
    """Return every measured pair, that of the newest transformers and then PEFT first."""
    text = files("foreword.doctor").joinpath("stock_peft_releases.json").read_text("utf-8")
    pairs = []
    for one in json.loads(text):
        verdicts = {form: one[form] for form in FORMS if form in one}
        pairs.append(Pair(one["peft"], one["transformers"], verdicts, one.get("error")))
    return tuple(pairs)


def nearest_pair(peft: str, transformers: str) -> Pair:
    """Return the newest measured pair whose releases are no newer, or the oldest ones there are.

    The release of transformers comes first: it is what changes PEFT's answers.
    """
    pairs = measured_pairs()
    below = [pair for pair in pairs if release(pair.transformers) <= release(transformers)]
    first = (below or pairs[-1:])[0].transformers
    same = [pair for pair in pairs if pair.transformers == first]
    return ([pair for pair in same if release(pair.peft) <= release(peft)] or same[-1:])[0]
