"""Write docs/contract-media.md: every case of the contract with images or sounds.

`python tests/support/media_table.py` runs the cases and writes the page; with `--check` it
writes nothing and says whether the page on disk is what it found. Both fail where foreword neither
holds nor refuses.
"""

import argparse
import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import transformers
from media_contract import CASES, World, world_of
from tiny_media import FAMILIES, TOLERANCES

from foreword.errors import UnsupportedError

PAGE = Path(__file__).parents[2] / "docs" / "contract-media.md"
FORMS = {"embeddings": "Embedding prompts", "key_values": "Key/value prompts"}
HEAD = """# The contract with images and sounds, measured

Every case runs on a tiny random model of each family, with its own towers, and is compared with the
oracle: the model's own code reads one unpadded row at a time behind a few ids of text, and the
prompt replaces the embeddings of these ids; no cache, everything computed again. Greedy tokens must
be the oracle's. Logits must agree to 1e-9 in float64 ({inexact}).

Made by `python tests/support/media_table.py` with {versions}.
**holds**: the result is the oracle's.
**refused**: an `UnsupportedError` says what to use instead. Stock PEFT is not in these tables,
because it gives the model embeddings: images then have no positions of their own, and sounds are
not read.

{count}
"""


def run(case: Callable[[World], None], world: World) -> str:
    """Return what foreword does with a case; anything but two words is a defect."""
    try:
        case(world)
    except UnsupportedError:
        return "refused"
    except Exception as error:
        return f"defect: {type(error).__name__}: {error}"
    return "holds"


def measure() -> dict[tuple[str, str, str], str]:
    """Run every case, for every family and both forms."""
    transformers.logging.set_verbosity_error()
    return {
        (form, case, family): run(CASES[case], world_of(family, form))
        for form in FORMS
        for family in FAMILIES
        for case in CASES
    }


def render(found: dict[tuple[str, str, str], str]) -> str:
    """Return the whole page."""
    names = ("torch", "transformers")
    versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in names]
    inexact = ", ".join(f"{name}: {limit:g}" for name, limit in TOLERANCES.items())
    held = sum(word == "holds" for word in found.values())
    count = f"Of {len(found)} cells, {held} hold and {len(found) - held} are refused."
    parts = [HEAD.format(versions=", ".join(versions), inexact=inexact, count=count)]
    for form, title in FORMS.items():
        parts.append(f"\n## {title}\n\n| case | {' | '.join(FAMILIES)} |\n")
        parts.append("|---" * (len(FAMILIES) + 1) + "|\n")
        for case in CASES:
            cells = " | ".join(found[form, case, family] for family in FAMILIES)
            parts.append(f"| {case.replace('_', ' ')} | {cells} |\n")
    parts.append("\n## What each case is\n\n")
    for name, case in CASES.items():
        said = " ".join(inspect.cleandoc(case.__doc__ or "").split())
        parts.append(f"- **{name.replace('_', ' ')}**: {said}\n")
    return "".join(parts)


def main() -> int:
    """Run everything, then write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the page, write nothing")
    arguments = parser.parse_args()
    found = measure()
    if defects := {key: word for key, word in found.items() if word.startswith("defect")}:
        print("foreword neither holds nor refuses:", *defects.items(), sep="\n  ")
        return 1
    page = render(found)
    if not arguments.check:
        PAGE.write_text(page)
    elif not PAGE.exists() or PAGE.read_text() != page:
        print(f"docs/contract-media.md is not what was measured; run: python {sys.argv[0]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
