"""State ids: under which ids a prompt's tokens stand in a llama.cpp state, and its sidecar.

In: a base's tokenizer, a prompt's hash, and the states that lie beside a new one. Out: ids that no
text begins with and no other prompt of that folder has, so that a server that says that it has them
cached has this prompt's state. Knows no llama.cpp and no HTTP.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foreword.backbone import Backbone
from foreword.data.tokenizing import token_ids
from foreword.errors import InputError
from foreword.export import chat_templates

FORMAT = "llama.cpp sequence state"
TRIES = 1000  # orders of few tokens; by then all of them are taken
MAX_SIDECAR = 1 << 24  # bytes


def choose(
    backbone: Backbone, content_hash: str, num_virtual: int, path: str | os.PathLike[str]
) -> list[int]:
    """Return the ids of a prompt's P tokens: control tokens, which no text spells, in an order that
    its hash chooses, or the next one where the state of another prompt has it.

    Args:
        backbone: of the tokenizer.
        content_hash: of the prompt.
        num_virtual: P.
        path: of the new state.

    Raises:
        InputError: too few control tokens, or too few orders of them.
    """
    special = backbone.tokenizer.added_tokens_decoder.items()
    control = sorted(id for id, token in special if token.special)
    if len(control) < 2:
        raise InputError("the base's tokenizer has fewer than two control tokens to write under")
    begun = _beginnings(backbone)
    first = [id for id in control if id not in begun]
    if not first:
        raise InputError("texts of the base begin with each of its control tokens: none is left")
    taken = [facts["ids"] for _, facts in others(path, content_hash)]
    for attempt in range(TRIES):
        ids = list(order(control, content_hash, num_virtual, attempt))
        if ids[0] in begun:
            ids[0] = first[ids[0] % len(first)]
        if not any(are_alike(ids, one) for one in taken):
            return ids
    raise InputError(
        f"{num_virtual} virtual tokens have no order of the base's {len(control)} control tokens "
        f"that no other state beside {Path(path)} has: choose another folder, or more tokens"
    )


def order(
    control: Sequence[int], content_hash: str, num_virtual: int, attempt: int = 0
) -> Iterator[int]:
    """Yield ids out of some, as a hash chooses them; in another way at each attempt."""
    key = content_hash if not attempt else f"{content_hash} again {attempt}"
    for place in range(num_virtual):
        digest = hashlib.sha256(f"{key} {place}".encode()).digest()
        yield control[int.from_bytes(digest[:8], "big") % len(control)]


def are_alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether a server that has one cached says that it has all of the other, or both."""
    shorter = min(len(one), len(other))
    return list(one[:shorter]) == list(other[:shorter])


def others(
    path: str | os.PathLike[str], content_hash: str
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the states of other prompts that lie beside one, with their sidecars' facts."""
    own = Path(path)
    try:
        found = sorted(own.parent.glob("*.json"))
    except OSError:
        return
    for sidecar in found:
        state = sidecar.with_suffix("")
        if state == own or not state.is_file():
            continue
        try:
            facts = read_facts(state)
        except InputError:  # another program's file
            continue
        if facts.get("format") == FORMAT and facts.get("content_hash") != content_hash:
            yield state, facts


def check_alone(path: str | os.PathLike[str], facts: dict[str, Any]) -> None:
    """Refuse a state whose ids the state of another prompt beside it has, too.

    Raises:
        InputError: names both.
    """
    for other, theirs in others(path, str(facts.get("content_hash"))):
        if are_alike(facts["ids"], theirs["ids"]):
            raise InputError(
                f"{Path(path)} and {other} are states of two prompts under the same ids, so that a "
                "server takes one for the other: export one of them again, beside the other"
            )


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the sidecar of a slot file says.

    Raises:
        InputError: there is none, or it does not say it.
    """
    sidecar = Path(f"{os.fspath(path)}.json")
    try:
        with sidecar.open("rb") as file:
            facts = json.loads(file.read(MAX_SIDECAR))
        ids, sha256 = facts["ids"], facts["base"]["sha256"]
        is_right = isinstance(ids, list) and bool(ids) and all(type(one) is int for one in ids)
        is_right = is_right and isinstance(sha256, str)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{sidecar}: no sidecar of a state that can be read ({said})") from None
    if not is_right:
        raise InputError(f"{sidecar}: its ids are no ids; export the prompt again")
    return dict(facts)


def _beginnings(backbone: Backbone) -> set[int]:
    """Return the ids that texts of the base begin with: a server that has a prompt cached would
    take its first token for theirs.
    """
    tokenizer = backbone.tokenizer
    begun = {tokenizer.bos_token_id, token_ids(tokenizer, "a")[0]}
    for text in chat_templates.base_texts(backbone):
        begun |= set(token_ids(tokenizer, text, add_special_tokens=False)[:1])
    return begun
