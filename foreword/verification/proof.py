"""Self-test of text: a class that no test covers is compared with the slow computation at load.

In: a model and its capabilities. Out: the capabilities under which it is exact, or an
`UnsupportedError` that says what differs and by how much. The proof runs on a tiny twin of the
model, in float64, in about a second; where none can be built, on the model itself. What was proved
is remembered for each class, configuration and release, in memory and in the cache directory.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from foreword.compat.error_lines import first_line
from foreword.errors import UnsupportedError
from foreword.loading.hub import cache_folder
from foreword.model.capabilities import AttentionPattern, Capabilities, inspect_model
from foreword.storage import replacing
from foreword.verification import cases, encoder_cases
from foreword.verification.cases import Trials
from foreword.verification.frozen_model import FrozenModel
from foreword.verification.twin import make_twin

log = logging.getLogger("foreword")

Make = Callable[[Any, Capabilities], FrozenModel]
LIMITS = {torch.float64: 1e-4, torch.float32: 2e-3}
DROPPED = 0.01  # of the spread: less than a state that is lost does
STRENGTH = 20  # times the limit that a prompt must move the logits, for a case to mean anything


@dataclass(frozen=True)
class Verdict:
    """What came out of a proof.

    Attributes:
        variant: the name of the capabilities under which every case holds; None where there are
            none.
        errors: the distance of each case, or what was raised, under the first variant that holds,
            else under the first that was tried.
        place: "twin", or "model" where no twin could be built.
        is_recurrent: whether the class keeps recurrent states.
    """

    variant: str | None
    errors: Mapping[str, float | str]
    place: str = "twin"
    is_recurrent: bool = False

    @property
    def reason(self) -> str:
        """The first case that does not hold, and how far off it is."""
        for name, found in self.errors.items():
            if isinstance(found, str):
                return f"{name}: {found}"
        worst = max(self.errors, key=lambda name: float(self.errors[name]))
        error, cause = float(self.errors[worst]), ""
        if self.is_recurrent and worst == "one row" and error > DROPPED:
            cause = "; its code may drop the recurrent state between passes"
        return f"{worst}: logits differ by {error:.2g} of their spread{cause}"


def prove(model: Any, capabilities: Capabilities, make: Make) -> Capabilities:
    """Return the capabilities under which a model is exact.

    Args:
        model: a transformers model in memory.
        capabilities: as its configuration says.
        make: makes a backbone of a model and its capabilities, without proving it.

    Raises:
        UnsupportedError: there are none; says what differs and by how much.
    """
    # Of a class elsewhere, a name does not tell which code it was.
    key = _key(model, capabilities) if type(model).__module__.startswith("transformers.") else None
    verdict = _recall(key) if key else None
    if verdict is None:
        verdict = examine(model, capabilities, make)
        if key:
            _remember(key, verdict)
    if verdict.variant is None:
        raise UnsupportedError(
            f"{capabilities.model_type}: {type(model).__name__} is not exact behind a prompt "
            f"({verdict.reason}); this family cannot be made exact yet"
        )
    return dict(variants(capabilities))[verdict.variant]


def examine(model: Any, capabilities: Capabilities, make: Make) -> Verdict:
    """Run every case, on a twin where one can be built, and on the model itself elsewhere."""
    try:
        twin = make_twin(type(model), model.config)
        own = inspect_model(twin)
        is_telling = _kinds(own) == _kinds(capabilities) and _is_telling(make(twin, own))
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # of whatever type a class raises
        log.debug("no tiny twin of %s: %s", type(model).__name__, failure, exc_info=True)
        is_telling = False
    if is_telling:
        return examine_on(twin, "twin", own, make)
    return examine_on(model, "model", capabilities, make)


def examine_on(subject: Any, place: str, capabilities: Capabilities, make: Make) -> Verdict:
    """Run every case on a model, under each variant of its capabilities up to one that holds."""
    first: Verdict | None = None
    for name, variant in variants(capabilities):
        verdict = _examine(name, functools.partial(make, subject, variant), place)
        if verdict.variant is not None:
            return verdict
        first = first or verdict
    assert first is not None
    return first


def variants(capabilities: Capabilities) -> Iterator[tuple[str, Capabilities]]:
    """Yield what a class may do that its configuration does not tell, the likeliest first."""
    yield "as configured", capabilities
    if any(pattern.size for pattern in capabilities.attention_patterns):
        full = AttentionPattern("full_attention")
        layers = tuple(
            replace(layer, pattern=layer.pattern and full) for layer in capabilities.layers
        )
        yield "its window unused", replace(capabilities, layers=layers)
    yield "without a static cache", replace(capabilities, takes_static_cache=False)
    # Rows without holes between their tokens: for a decoder that counts slots.
    if capabilities.attention_patterns and capabilities.encoder is None:
        yield "by slot", replace(capabilities, counts_slots=True)


def _kinds(capabilities: Capabilities) -> set[Any]:
    """Return the kinds of layers: a twin of fewer kinds would prove too little."""
    return {
        (layer.pattern and (layer.pattern.name, layer.pattern.size is None), layer.num_recurrences)
        for layer in capabilities.layers
    }


def _trials(backbone: FrozenModel) -> tuple[Any, Mapping[str, Callable[[Any], float]]]:
    if backbone.capabilities.encoder is not None:
        return encoder_cases.EncoderTrials(backbone), encoder_cases.CORE
    return Trials(backbone), cases.core(backbone.capabilities)


def _is_telling(backbone: FrozenModel) -> bool:
    """Return whether a prompt moves the logits far enough for a difference to be seen."""
    with torch.no_grad():
        strength = float(_trials(backbone)[0].strength())
    return strength > STRENGTH * LIMITS[backbone.dtype]


def _examine(name: str, make: Callable[[], FrozenModel], place: str) -> Verdict:
    """Run the cases up to the first that does not hold."""
    try:
        with torch.no_grad():
            backbone = make()
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # of whatever type a class raises
        return Verdict(None, {"the model": _raised(failure)}, place)
    trials, core = _trials(backbone)
    limit = LIMITS.get(backbone.dtype) or _noise(trials)
    errors: dict[str, float | str] = {}
    for case, run in core.items():
        try:
            with torch.no_grad():
                errors[case] = run(trials)
        except torch.OutOfMemoryError:
            raise
        except UnsupportedError as refusal:
            log.debug("%s: %s is refused: %s", backbone.capabilities.model_type, case, refusal)
            continue  # what is refused by name is not wrong
        except Exception as failure:  # of whatever type a class raises
            return Verdict(None, {case: _raised(failure)}, place)
        if not float(errors[case]) <= limit:
            is_recurrent = backbone.capabilities.is_recurrent
            return Verdict(None, {case: errors[case]}, place, is_recurrent)
    if not errors:
        return Verdict(None, {"every case": "is refused"}, place)
    return Verdict(name, errors, place)


def _raised(failure: Exception) -> str:
    return f"raises {type(failure).__name__} ({first_line(failure)})"


def _noise(trials: Any) -> float:
    """Return what rounding alone may do in half precision: three times what it does to one row
    when every embedding is moved by a unit of its last place.
    """
    return 3 * float(trials.rounding())


_known: dict[str, Verdict] = {}


def _key(model: Any, capabilities: Capabilities) -> str:
    """Return a name for a class, its configuration and the releases that it runs on."""
    kind = type(model)
    parts = [
        *(f"{package} {metadata.version(package)}" for package in ("transformers", "torch")),
        _own_code(),
        f"{kind.__module__}.{kind.__qualname__}",
        capabilities.attention,
        str(model.dtype) if str(model.dtype) not in ("torch.float32", "torch.float64") else "",
        str(model.device.type),
        json.dumps(_options(model.config), sort_keys=True, default=str),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _options(config: Any) -> dict[str, Any]:
    """Return a configuration without what names a checkpoint."""
    return {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "name")}


@functools.cache
def _own_code() -> str:
    """Return a hash of the code that a proof is of."""
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def code_files() -> list[Path]:
    """Return the modules that a proof runs: the backbone, and all that it is made of."""
    package = Path(__file__).parent.parent
    rooms = ("compat", "prompt", "data", "loading", "model", "generation", "verification")
    return [
        package / "backbone.py",
        *(path for room in rooms for path in sorted((package / room).glob("*.py"))),
    ]


def _recall(key: str) -> Verdict | None:
    if key not in _known:
        try:
            found = json.loads(_file(key).read_text(encoding="utf-8"))
            _known[key] = Verdict(**found)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
    return _known[key]


def _remember(key: str, verdict: Verdict) -> None:
    _known[key] = verdict
    path = _file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            scratch.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
    except OSError as error:  # a proof takes a second: it is made again next time
        log.debug("the proof is not kept in %s: %s", path, error)


def _file(key: str) -> Path:
    return cache_folder() / "proofs" / f"{key}.json"
