"""Self-study: questions about a text, asked by the model that reads it, or by another behind HTTP.

In: a text's prompts and parts, a seed, options; who asks. Out: queries without answers, each with
the passage that it is about; how many were dropped, and why. What was said is kept in a folder, so
that a run that was stopped goes on, bit for bit. Eyuboglu et al. 2025 (arXiv:2506.06266), whose
kinds of questions these are. Trains nothing.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import DistillConfig
from foreword.distillation.endpoint import ChatEndpoint
from foreword.distillation.kept_work import ASKED, remove
from foreword.distillation.passages import Passage, batches_of, longest_passage, planned
from foreword.distillation.queries import Query, flat
from foreword.distillation.questions import (
    LABEL,
    MESSAGES,
    QUESTIONS,
    asked_about,
    asked_elsewhere,
    question_in,
    why_dropped,
)
from foreword.errors import ArtifactError, InputError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.storage import replacing, storage_errors
from foreword.training.sampling import drawing_from

FEWEST = 4  # questions to learn from
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 0.95}


@dataclass(frozen=True)
class Study:
    """What came of asking.

    Attributes:
        queries: those that are of use, each said once.
        num_asked: all.
        num_passages: of the text, that they are about.
        dropped: how many were not of use, by why.
    """

    queries: list[Query]
    num_asked: int
    num_passages: int
    dropped: Counter[str]


def study(
    backbone: Backbone,
    teachers: Sequence[SoftPrompt],
    passages: Sequence[Passage],
    config: DistillConfig,
    *,
    is_instruction: bool,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    is_anew: bool = False,
    on_begin: Callable[[], object] = lambda: None,
    on_question: Callable[[], object] = lambda: None,
) -> Study:
    """Have questions asked about a text.

    Args:
        backbone: with a tokenizer; asks itself where `config` names no endpoint.
        teachers: each part of the text as a prompt.
        passages: of the parts; for an instruction one, the whole.
        config: how many, how long, and who asks.
        is_instruction: whether messages are asked for that people would send to the model so
            instructed, in place of questions about passages.
        seed: of sampling.
        folder: keeps what was said.
        is_anew: whether what was said there about something else is removed.
        on_begin: is called before anything is written there or removed.
        on_question: is called after each.

    Raises:
        InputError: too few are of use, or the folder holds questions about another text.
        UnavailableError: the endpoint does not answer.
    """
    plan = planned(passages, list(_kinds(is_instruction)), config.questions)
    key = _key(backbone, teachers, passages, config, is_instruction, seed)
    place = None if folder is None else Path(folder) / ASKED
    useful = _Kept(backbone, config, is_instruction, chat.reads_turns(backbone, teachers[0]))
    for number, batch in enumerate(batches_of(plan, config.answer_batch)):
        file = None if place is None else place / f"{number:05}.json"
        said = _kept(file, key, is_anew=is_anew)
        if said is None:
            seeds = [_number(f"{seed}/{number}/{index}") for index in range(len(batch))]
            said = _said(backbone, teachers, batch, config, is_instruction, seeds)
            if file is not None and folder is not None:
                on_begin()
                if is_anew:
                    remove(Path(folder), ASKED, lambda one: _kept_under(one) == key)
                _write(file, key, said)
        for (passage, kind), text in zip(batch, said, strict=True):
            useful.take(passage if len(passages) > 1 else replace(passage, name=""), kind, text)
            on_question()
    _check_enough(useful.queries, len(plan), useful.dropped)
    return Study(useful.queries, len(plan), len(passages), useful.dropped)


@dataclass
class _Kept:
    """The questions that are of use, as they come."""

    backbone: Backbone
    config: DistillConfig
    is_instruction: bool
    is_chat: bool
    queries: list[Query] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    known: set[str] = field(default_factory=set)

    def take(self, passage: Passage, kind: str, said: str) -> None:
        """Keep what was said, or count why not; a passage without a name is the only one."""
        question = question_in(said, self.is_instruction, self.is_chat)
        limit = self.config.question_tokens
        why = why_dropped(self.backbone, question, passage.text, limit)
        if why is None and flat(question) in self.known:
            why = "asked twice"
        if why is not None:
            self.dropped[why] += 1
            return
        self.known.add(flat(question))
        turns = ({"role": "user", "content": question},)
        asked = turns if self.is_chat else LABEL.format(question)
        source = f"question {len(self.queries) + 1} ({kind})"
        self.queries.append(Query(asked, source, None, passage.name or None, passage.part))


def _kinds(is_instruction: bool) -> dict[str, str]:
    return MESSAGES if is_instruction else QUESTIONS


def room_for(
    backbone: Backbone,
    config: DistillConfig,
    queries: Sequence[Query] | None,
    *,
    is_instruction: bool,
) -> int:
    """Return how many tokens behind a text the longest exchange has: a query and its answer, or of
    self-study the asking for a question, too.
    """
    bare = chat.encoding_of(None)

    def length(text: chat.Text) -> int:
        typed = chat.typed(backbone, None, text) if isinstance(text, str) else text
        return len(chat.encode(backbone, typed, bare)[0])

    if queries is not None:
        return max(length(query.asked) for query in queries) + config.answer_tokens
    is_chat = chat.reads_turns(backbone, None)
    kinds = _kinds(is_instruction)
    asking = max(length(asked_about("", one, is_instruction, is_chat)) for one in kinds.values())
    if not is_instruction:
        asking += longest_passage(backbone.capabilities.context_length)
    question = length("a" if is_chat else LABEL.format("a")) + config.question_tokens
    return max(asking + config.question_tokens, question + config.answer_tokens)


def described(found: Study, config: DistillConfig) -> str:
    """Say where queries came from, and what was dropped."""
    who = (
        f"{config.questions_model} at {config.questions_from}"
        if config.questions_from
        else "the model"
    )
    said = ", ".join(f"{count} {why}" for why, count in found.dropped.most_common())
    return (
        f"{len(found.queries)} questions about {min(found.num_asked, found.num_passages)} of "
        f"{found.num_passages} passages, asked by {who}; "
        f"{found.dropped.total()} of {found.num_asked} dropped" + (f": {said}" if said else "")
    )


def _said(
    backbone: Backbone,
    teachers: Sequence[SoftPrompt],
    batch: Sequence[tuple[Passage, str]],
    config: DistillConfig,
    is_instruction: bool,
    seeds: Sequence[int],
) -> list[str]:
    """Return what is said when questions are asked for: by an endpoint, or by the model behind a
    part of the text, sampled from the first of the seeds.
    """
    kinds = _kinds(is_instruction)
    if config.questions_from is not None:
        endpoint = ChatEndpoint(config.questions_from, config.questions_model or "")
        texts = [asked_elsewhere(one.text, kinds[kind], is_instruction) for one, kind in batch]
        return endpoint.ask(texts, config.question_tokens, seeds)
    teacher = teachers[batch[0][0].part]
    is_chat = chat.reads_turns(backbone, teacher)
    asked = [
        chat.typed(backbone, teacher, asked_about(one.text, kinds[kind], is_instruction, is_chat))
        for one, kind in batch
    ]
    size, limit = len(batch), config.question_tokens
    with drawing_from(seeds[0], backbone.device):
        found = chat.answers(
            backbone, teacher, asked, batch_size=size, max_new_tokens=limit, **SAMPLING
        )
        return [answer.text for answer in found]


def _check_enough(queries: Sequence[Query], count: int, dropped: Counter[str]) -> None:
    if len(queries) >= max(FEWEST, count // 10):
        return
    said = ", ".join(f"{number} {why}" for why, number in dropped.most_common()) or "none"
    raise InputError(
        f"{len(queries)} of {count} questions are of use (dropped: {said}): give --data with "
        "queries, have a stronger model ask (--questions-from), or ask for more (--questions)"
    )


def _kept(file: Path | None, key: str, *, is_anew: bool) -> list[str] | None:
    """Return the questions that a file keeps under a key; None where they are to be asked.

    Raises:
        InputError: it keeps others, and they are not to be replaced. ArtifactError: it is damaged.
    """
    if file is None or not file.exists() or (is_anew and _kept_under(file) != key):
        return None
    known, said = _read(file)
    if known != key:
        raise InputError(
            f"{file.parent} holds questions about another text, of another base or options: choose "
            "another --output, or begin anew with --overwrite"
        )
    return said


def _kept_under(file: Path) -> str | None:
    """Return the key under which a file keeps questions; None where it cannot be read."""
    try:
        return _read(file)[0]
    except ArtifactError:
        return None


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) // 2


def _key(
    backbone: Backbone,
    teachers: Sequence[SoftPrompt],
    passages: Sequence[Passage],
    config: DistillConfig,
    is_instruction: bool,
    seed: int,
) -> str:
    """Return what questions have in common: who asks, about what, and how."""
    own: list[Any] = []
    if config.questions_from is None:
        own = [backbone.fingerprint(), str(backbone.dtype), backbone.tokenizer_facts()]
        own.append([teacher.content_hash for teacher in teachers])
    parts = [
        own,
        [[passage.text, passage.part] for passage in passages],
        [config.questions, config.question_tokens, config.answer_batch, seed],
        [config.questions_from, config.questions_model],
        _kinds(is_instruction),
        SAMPLING,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(file: Path, key: str, said: list[str]) -> None:
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"key": key, "questions": said}), encoding="utf-8")


def _read(file: Path) -> tuple[str, list[str]]:
    """Return the key under which questions were kept, and the questions."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        known, said = found["key"], [str(one) for one in found["questions"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{file}: damaged ({error}); remove it, and it is made again") from None
    return known, said
