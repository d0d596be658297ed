"""Model registry: the names that are served, of the bare model and of the store's prompts.

In: what a client calls a model: the base's name, `NAME`, `NAME@VERSION`, an alias. Out: the source
of a prompt for the engine, and how its rows are encoded. A name is bound to a version when it is
loaded, and a request to that version when it arrives, so that replacing a prompt never mixes old
and new. A prompt's file is read again only where the engine has evicted its state; what is then
wrong with it is told without paths, and in the log with them. Knows no HTTP.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from foreword import chat
from foreword.config import EncodingConfig
from foreword.engine.request import PromptSource
from foreword.errors import ForewordError, InputError, NotFoundError, UnavailableError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.store import BARE, Entry, Store, check_name, split_reference

log = logging.getLogger("foreword.server")
MAX_VERSIONS = 1024  # old versions of which the facts are remembered


class CheckedBase(Protocol):
    """A model that prompts are checked against."""

    def check(self, prompt: SoftPrompt) -> None:
        """Refuse a prompt that was made for another model."""

    def tokenizer_facts(self) -> Mapping[str, Any] | None:
        """Return what tells its tokenizer from another; None where none is known."""


@dataclass(frozen=True)
class ServedModel:
    """One model as clients see it.

    Attributes:
        name: what answers call it.
        label: its name in metrics: without a version, so that their number stays bounded.
        source: its prompt; None for the bare model.
        encoding: how text becomes ids.
        entry: where it lies in the store.
        facts: what the prompt says of itself, and its size.
        created: when the prompt was made, in seconds since 1970; of the bare model and of a prompt
            that does not say it, when it was loaded.
        is_spaced: whether a space stood before every answer of its training, and no template.
        stamp: its files as they were when they were read; see `Store.stamp`.
    """

    name: str
    label: str
    source: PromptSource | None = None
    encoding: EncodingConfig = field(default_factory=lambda: chat.encoding_of(None))
    entry: Entry | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    is_spaced: bool = False
    stamp: object = None


class Catalog:
    """What is served now.

    Args:
        model: what prompts must fit.
        store: where prompts lie; None serves the bare model only.
        base: the bare model's name.
    """

    def __init__(self, model: CheckedBase, store: Store | None, base: str) -> None:
        self.model, self.store = model, store
        self.base = ServedModel(base, BARE)
        self._served: dict[str, ServedModel] = {}
        self._versions: dict[str, ServedModel] = {}
        self._lock = threading.Lock()

    def load_all(self) -> dict[str, str]:
        """Load every name and alias of the store, and read no file of those that are served as it
        is; return those that are refused, and why.
        """
        refused: dict[str, str] = {}
        if self.store is None:
            return refused
        for name in [*self.store.names(), *self.store.aliases()]:
            try:
                self._serve(name, as_read=True)
            except UnavailableError as error:
                refused[name] = str(error.__cause__)
            except ForewordError as error:
                refused[name] = str(error)
        return refused

    def load(self, name: str) -> ServedModel:
        """Serve a name of the store at its current version, or again at a newer one.

        Raises:
            NotFoundError: not in the store. InputError: not a prompt for this model, or a name that
                cannot be served. UnavailableError: its files are damaged; the log says how.
        """
        with _logged(name):
            return self._serve(name)

    def _serve(self, name: str, as_read: bool = False) -> ServedModel:
        if self.store is None:
            raise NotFoundError("this server has no store of prompts; start it with --prompts")
        if name == self.base.name:
            raise InputError(f"{name!r} is the bare model's own name; rename the prompt")
        if name == BARE:
            raise InputError(f"{name!r} stands for the bare model in metrics; rename the prompt")
        if "@" in name:
            raise InputError(f"{name!r}: load a name; its versions can be asked for then")
        check_name(name)
        try:
            entry = self.store.resolve(name)
        except NotFoundError:
            raise NotFoundError(f"the store has no prompt {name!r}") from None
        except (InputError, OSError) as error:
            raise _unavailable(name) from error
        served = (self._as_read(name, entry) if as_read else None) or self._read(name, name, entry)
        with self._lock:
            self._served[name] = served
        return served

    def _as_read(self, name: str, entry: Entry) -> ServedModel | None:
        """Return what is served already of a version's files as they are, under this name."""
        assert self.store is not None
        with self._lock:
            found = [self._served.get(name), self._served.get(entry.name)]
        known = next((one for one in found if one is not None and one.entry == entry), None)
        if known is None or known.stamp != self.store.stamp(entry):
            return None
        return replace(known, name=name, label=name)

    def reload(self) -> dict[str, str]:
        """Serve what the store holds now: new names, current versions, and no longer what is gone.

        A name that cannot be read stays served as it was. Returns each name that changed, and how.
        """
        before = {served.name: served.entry for served in self.all()}
        refused = self.load_all()
        after = {served.name: served.entry for served in self.all()}
        said = {
            name: f"served, {entry}"
            for name, entry in after.items()
            if name not in before or before[name] != entry
        }
        said |= {name: f"refused: {reason}" for name, reason in refused.items()}
        if self.store is None:
            return said
        known = {*self.store.names(), *self.store.aliases(), self.base.name}
        for name in set(after) - known:
            with contextlib.suppress(NotFoundError):  # unloaded meanwhile
                self.unload(name)
                said[name] = "no longer served"
        return said

    def unload(self, name: str) -> None:
        """Stop serving a name; running requests are not disturbed.

        Raises:
            NotFoundError: it is not served.
        """
        with self._lock:
            if self._served.pop(name, None) is None:
                raise NotFoundError(f"{name[:80]!r} is not loaded")

    def find(self, name: str) -> ServedModel:
        """Return the model of a name.

        Raises:
            NotFoundError: there is none. InputError: not a version.
            UnavailableError: the version's files are damaged; the log says how.
        """
        if name == self.base.name:
            return self.base
        plain, version = split_reference(name)
        with self._lock:
            served = self._served.get(plain)
        if served is None or served.entry is None:
            raise NotFoundError(
                f"the model {name[:80]!r} does not exist; GET /v1/models lists all that do"
            )
        return self._version(served, version) if version else served

    def all(self) -> list[ServedModel]:
        """Return the bare model and every prompt."""
        with self._lock:
            return [self.base, *sorted(self._served.values(), key=lambda served: served.name)]

    def _version(self, served: ServedModel, version: str) -> ServedModel:
        assert self.store is not None and served.entry is not None
        if version == served.entry.version:
            entry = served.entry
        else:
            try:
                entry = self.store.resolve(f"{served.entry.name}@{version}")
            except NotFoundError:
                raise NotFoundError(
                    f"the model {served.name!r} has no version {version[:16]!r}, or several that "
                    "begin like it"
                ) from None
            except OSError as error:
                with _logged(served.name):
                    raise _unavailable(served.name) from error
        name = f"{served.name}@{entry.version}"
        with self._lock:
            known = self._versions.get(name)
        if known is None:
            with _logged(name):
                known = self._read(name, served.label, entry)
            with self._lock:
                if len(self._versions) >= MAX_VERSIONS:
                    self._versions.clear()
                self._versions[name] = known
        return known

    def _read(self, name: str, label: str, entry: Entry) -> ServedModel:
        """Read and check a prompt's files; its values are not kept."""
        assert self.store is not None
        stamp = self.store.stamp(entry)
        prompt = self._load(entry)
        self.model.check(prompt)
        chat.check_template(self.model, prompt)
        source = PromptSource(
            prompt.content_hash, prompt.num_virtual_tokens, lambda: self._load_again(entry)
        )
        facts = {
            "version": entry.version,
            "form": prompt.form,
            "virtual_tokens": prompt.num_virtual_tokens,
            "num_bytes": prompt.num_bytes,
            "created": prompt.facts.get("created"),
            "metrics": prompt.facts.get("metrics"),
            "history": prompt.facts.get("history"),
        }
        created = _seconds_of(prompt.facts.get("created"))
        encoding, said = chat.encoding_of(prompt), chat.saved_encoding(prompt)
        is_literal = encoding.row_template is not None or said.get("is_text", False) is not False
        is_spaced = is_literal and bool(said.get("is_spaced"))
        return ServedModel(name, label, source, encoding, entry, facts, created, is_spaced, stamp)

    def _load(self, entry: Entry) -> SoftPrompt:
        assert self.store is not None
        try:
            return SoftPrompt.load(self.store.verify(entry))
        except (InputError, OSError) as error:
            raise _unavailable(str(entry)) from error

    def _load_again(self, entry: Entry) -> SoftPrompt:
        with _logged(str(entry)):
            return self._load(entry)


def _seconds_of(moment: str | None) -> int:
    """Return a recorded moment in seconds since 1970; now, where none is."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        found = datetime.fromisoformat(moment or "")
        seconds = int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
        return max(0, seconds)
    return int(time.time())


def _unavailable(name: str) -> UnavailableError:
    return UnavailableError(f"the prompt {name} is damaged or gone on the server; its log says how")


@contextlib.contextmanager
def _logged(name: str) -> Iterator[None]:
    """Write to the log why a prompt cannot be read, which clients are not told."""
    try:
        yield
    except UnavailableError as error:
        log.error("%s cannot be read: %s", name, error.__cause__)
        raise
