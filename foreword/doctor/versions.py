"""Version check: which releases are installed, whether they fit, and what is known of PEFT's.

In: nothing, or version numbers. Out: findings, and the text on the KeyError that stock PEFT raises.
What is known of PEFT's releases is measured (`peft_releases`); of those before 0.14 it is from its
own issues and wheels. Loads no model.
"""

import platform
import textwrap
from importlib import metadata

from packaging.version import Version

from foreword.compat.releases import NEWEST_TRANSFORMERS, OLDEST_TRANSFORMERS, is_newer
from foreword.doctor.finding import Finding
from foreword.doctor.peft_releases import Pair, measured_pairs, nearest_pair, release

OLDEST_PYTHON = Version("3.11")
OLDEST_TORCH, NEWEST_TORCH = Version("2.9"), Version("2.16")  # the newest is exclusive

SEED_ERROR = "KeyError: 'Cache only has 0 layers, attempted to access layer with index 0'"
USE_FOREWORD = "generate with foreword: it reads the same directory (SoftPrompt.load)"

UPGRADING = textwrap.fill(
    "3. Upgrading PEFT removes the error from 0.12 on. But 0.12 and 0.13 leave the prompt out of "
    "cached generation without an error (peft #1969, #2123), and the newest releases measured are "
    f"not right either. {measured_pairs()[0]}: {'; '.join(measured_pairs()[0].failures())}.",
    width=100,
    subsequent_indent="   ",
    break_on_hyphens=False,
)
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
{UPGRADING}

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
        _transformers(transformers),
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
    nearest = nearest_pair(peft_version, transformers_version)
    detail = f"{pair}: {_failures(nearest)}"
    if nearest.releases != (release(transformers_version), release(peft_version)):
        detail = f"{pair}: not measured; the nearest measured is {nearest}: {_failures(nearest)}"
    cure = f"{USE_FOREWORD}, or give doctor the prompt's directory to measure PEFT on your model"
    return Finding("peft", "warning", detail, cure)


def _failures(pair: Pair) -> str:
    return "; ".join(pair.failures()) or "nothing was found wrong"


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


def _transformers(found: str | None) -> Finding:
    if found is not None and is_newer(Version(found)):
        detail = (
            f"{found} is newer than the tested range, <{NEWEST_TRANSFORMERS}: every model proves "
            "itself when it is loaded, and what is not exact is refused"
        )
        return Finding("transformers", "warning", detail, "rely on the self-test")
    return _in_range("transformers", found, OLDEST_TRANSFORMERS, NEWEST_TRANSFORMERS)


def _in_range(package: str, found: str | None, oldest: Version, newest: Version) -> Finding:
    cure = f"pip install '{package}>={oldest},<{newest}'"
    if found is None:
        return Finding(package, "wrong", "not installed", cure)
    if not oldest <= Version(found) < newest:
        detail = f"{found} is outside the tested range, >={oldest},<{newest}"
        return Finding(package, "wrong", detail, cure)
    return Finding(package, "ok", found)
