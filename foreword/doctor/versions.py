"""Version check: which releases are installed, whether they fit, and what is known of PEFT's.

In: nothing, or version numbers. Out: findings, and the text on the KeyError that stock PEFT raises.
What is known of PEFT's releases is from its own issues, its wheels and measurements of 0.21.2 with
transformers 5.23 (docs/contract.md). Loads no model.
"""

import platform
from importlib import metadata

from packaging.version import Version

from foreword.compat import NEWEST_TRANSFORMERS, OLDEST_TRANSFORMERS
from foreword.doctor.finding import Finding

OLDEST_PYTHON = Version("3.11")
OLDEST_TORCH, NEWEST_TORCH = Version("2.9"), Version("2.15")  # the newest is exclusive
MEASURED_PEFT, MEASURED_TRANSFORMERS = "0.21.2", "5.23.0"

SEED_ERROR = "KeyError: 'Cache only has 0 layers, attempted to access layer with index 0'"
STILL_WRONG = (
    "is silently wrong for embedding prompts in left-padded batches, chunked prefill and a second "
    "turn on a returned cache, and for key/value prompts in left-padded batches of models with "
    "sliding layers; assisted decoding is wrong or raises, static caches and prompt lookup raise"
)
USE_FOREWORD = "generate with foreword: it reads the same directory (SoftPrompt.load)"

SEED_FAILURE = f"""\
{SEED_ERROR}

Stock PEFT raises this where it generates with prompt tuning (transformers #27985, #32060, #36509;
peft #2379). PEFT up to 0.11.1 takes the length of the cache from past_key_values[0][0]; from about
transformers 4.42 on, generate hands it an empty DynamicCache, which has no layer 0 yet.

Three cures are published:
1. use_cache=False removes the error. Every new token then runs the model over the prompt and the
   whole text again; with a model, the self-test measures what that costs. Left-padded batches stay
   silently wrong.
2. use_cache=True, past_key_values=None does not help: the reporter of transformers #36509 tried it.
   None is what generate replaces with the empty cache.
3. Upgrading PEFT removes the error from 0.12 on. But 0.12 and 0.13 leave the prompt out of cached
   generation without an error (peft #1969, #2123), and the newest releases measured, PEFT
   {MEASURED_PEFT} with transformers {MEASURED_TRANSFORMERS}, still get left-padded batches, chunked
   prefill and a second turn on a returned cache silently wrong. Assisted decoding is wrong or
   raises; static caches and prompt lookup raise.

foreword computes the model's own cache after the virtual tokens once, starts every row from it and
leaves generate as it is: cached, at full speed, and equal to the slow computation, which the
self-test repeats on your model. It reads the same prompt directory.
"""


def environment() -> list[Finding]:
    """Return what is installed: python, torch, transformers, and PEFT where there is one."""
    transformers = _installed("transformers")
    return [
        _python(),
        _in_range("torch", _installed("torch"), OLDEST_TORCH, NEWEST_TORCH),
        _in_range("transformers", transformers, OLDEST_TRANSFORMERS, NEWEST_TRANSFORMERS),
        judge_peft(_installed("peft"), transformers or "0"),
    ]


def judge_peft(peft_version: str | None, transformers_version: str) -> Finding:
    """Return what is known of stock PEFT's soft prompts with a release of transformers."""
    pair = f"peft {peft_version} with transformers {transformers_version}"
    if peft_version is None:
        return Finding("peft", "ok", "not installed; foreword does not need it")
    peft, transformers = Version(peft_version), Version(transformers_version)
    defect = _known_defect(peft, transformers)
    if defect is not None:
        cure = f"{USE_FOREWORD}, or pip install --upgrade peft"
        return Finding("peft", "wrong", f"{pair}: {defect}", cure)
    if peft.release[:2] == (0, 21) and transformers.release[:2] == (5, 23):
        detail = f"{pair}: the KeyError 'Cache only has 0 layers' is gone, but PEFT {STILL_WRONG}"
        return Finding("peft", "warning", detail, USE_FOREWORD)
    detail = (
        f"{pair}: not measured; PEFT {MEASURED_PEFT} with transformers {MEASURED_TRANSFORMERS} "
        f"{STILL_WRONG}"
    )
    cure = f"{USE_FOREWORD}, or give doctor the prompt's directory to measure PEFT on it"
    return Finding("peft", "warning", detail, cure)


def _known_defect(peft: Version, transformers: Version) -> str | None:
    """Return the defect of a pair whose cached generation is useless, as PEFT's wheels show."""
    if transformers < Version("4.42") or peft >= Version("0.14"):
        return None
    if peft < Version("0.12"):
        return f"generating with a prompt raises {SEED_ERROR} (transformers #32060, #36509)"
    if peft < Version("0.13"):
        return "cached generation leaves the prompt out, without an error (peft #1969)"
    if transformers >= Version("4.45"):
        return "cached generation leaves the prompt out, without an error (peft #2123)"
    return None


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    found = platform.python_version()
    if Version(found) < OLDEST_PYTHON:
        cure = f"make an environment with Python {OLDEST_PYTHON} or newer"
        return Finding("python", "wrong", f"{found}, older than {OLDEST_PYTHON}", cure)
    return Finding("python", "ok", found)


def _in_range(package: str, found: str | None, oldest: Version, newest: Version) -> Finding:
    cure = f"pip install '{package}>={oldest},<{newest}'"
    if found is None:
        return Finding(package, "wrong", "not installed", cure)
    if not oldest <= Version(found) < newest:
        detail = f"{found} is outside the tested range, >={oldest},<{newest}"
        return Finding(package, "wrong", detail, cure)
    return Finding(package, "ok", found)
