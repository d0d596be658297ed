"""Teacher: the frozen model behind a whole text, and what it answers.

In: a backbone, the text as a prompt, queries. Out: for each query the ids of the teacher's greedy
answer, and its likeliest ids at each of them. The text is read once; answers are computed in
batches and kept in a folder, so that a run that was stopped goes on with those that it has, bit for
bit. Trains nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import DistillConfig
from foreword.data import batches
from foreword.data.encoding import Row
from foreword.data.target import Target, joined, together
from foreword.errors import ArtifactError, DataError, InputError
from foreword.evaluation.evaluation import room
from foreword.prompt.prefix import Prefix, PrefixBatch, no_prefixes, same_prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.tensor_file import read_metadata, read_tensors, write_tensors
from foreword.storage import remove_leftovers
from foreword.training import distributed
from foreword.training.loss import MAX_LOGITS

KEY = "foreword_teacher"
MOST = 16  # times --top-k ids that are kept at a token
LOWEST = -100.0  # a log probability in nats below which nothing is told apart


@dataclass(frozen=True, eq=False)
class Taught:
    """What the teacher says to one query: the ids of its answer, and its target at each."""

    ids: tuple[int, ...]
    target: Target


@dataclass(frozen=True)
class _Asked:
    """A query as it stands behind the text, and the ids that end an answer to it."""

    row: Row
    ends: list[int]


def teach(
    backbone: Backbone,
    text: SoftPrompt,
    queries: Sequence[chat.Text],
    config: DistillConfig,
    folder: Path | None = None,
    *,
    is_anew: bool = False,
) -> Iterator[Taught]:
    """Yield what the model behind the whole text says to each query, in order. Several processes
    of a run share the queries where a folder keeps the answers.

    Args:
        backbone: the frozen model.
        text: the text as a prompt, see `named_text.text_prompt`, or any other prompt.
        queries: texts or conversations.
        config: how much is kept of an answer.
        folder: keeps the answers; those that it holds are not computed again.
        is_anew: whether answers of another teacher or to other queries there are replaced.

    Raises:
        InputError: the folder holds answers of another teacher or to other queries.
        DataError: a query that the text cannot stand before, or that leaves no room for its answer.
        StorageError: nowhere to write.
    """
    asked = [_asked(backbone, text, query, config) for query in queries]
    key, ranks = _key(backbone, text, asked, config), distributed.join()
    prefix, size = backbone.compile(text), config.answer_batch
    parts = [asked[start : start + size] for start in range(0, len(asked), size)]
    files = [
        folder / f"{number:05}.safetensors" if folder else None for number in range(len(parts))
    ]

    def answer(part: Sequence[_Asked], file: Path | None) -> list[Taught]:
        if file is not None and file.exists():
            known, kept = _read(file)
            if known == key:
                return kept
            if not is_anew:
                raise InputError(
                    f"{file.parent} holds answers of another context, base, options or queries: "
                    "choose another --output, or begin anew with --overwrite"
                )
        found = _answered(backbone, prefix, part, config)
        if file is not None:
            _write(file, key, found)
        return found

    if ranks.is_main:
        for known in filter(None, files):
            remove_leftovers(known)
    if folder is not None and ranks.size > 1:  # each process its share, which all then read
        ranks.is_any(False)
        for part, file in list(zip(parts, files, strict=True))[ranks.rank :: ranks.size]:
            answer(part, file)
        ranks.is_any(False)
    for part, file in zip(parts, files, strict=True):
        yield from answer(part, file)


def key_of(
    backbone: Backbone, text: SoftPrompt, queries: Sequence[chat.Text], config: DistillConfig
) -> str:
    """Return the key under which `teach` keeps its answers.

    Raises:
        DataError: a query that the text cannot stand before, or that leaves no room for its answer.
    """
    return _key(backbone, text, [_asked(backbone, text, one, config) for one in queries], config)


def kept_under(file: Path) -> str | None:
    """Return the key under which a file keeps answers; None where it cannot be read."""
    try:
        return read_metadata(file).get(KEY)
    except (OSError, ValueError):
        return None


def targets_of(
    backbone: Backbone,
    prefix: Prefix | None,
    rows: Sequence[Row],
    top_k: int,
    keep_mass: float = 0.0,
) -> list[Target]:
    """Return what the model says behind a prefix at each label of each row: the `top_k` likeliest
    ids, or more where they hold less of the probability than `keep_mass`.
    """
    batch = batches.collate(rows, backbone.padding_id)
    start = no_prefixes(len(rows)) if prefix is None else same_prefix(prefix, len(rows))
    size = max(1, MAX_LOGITS // backbone.capabilities.vocab_size)
    with torch.no_grad():
        states, _, where = backbone.label_states(start, batch)
        parts = [_likeliest(backbone, part, top_k, keep_mass) for part in states.split(size)]
    return _of_rows(together(parts), where, len(rows))


def reverse_targets(
    backbone: Backbone,
    teachers: Sequence[Prefix],
    rows: Sequence[Row],
    own: Sequence[Target],
) -> list[Target]:
    """Return how likely the teacher finds what a student finds likeliest.

    Args:
        backbone: the frozen model.
        teachers: of each row, the whole text or a part of it.
        rows: as the teacher is asked them, with the student's answers as labels.
        own: the student's likeliest ids at each label, as `targets_of` returns them behind its
            prefix.

    Returns:
        Targets with a `log_rest`, whose divergence is the reverse one.
    """
    batch = batches.collate(rows, backbone.padding_id)
    size = max(1, MAX_LOGITS // backbone.capabilities.vocab_size)
    with torch.no_grad():
        states, _, where = backbone.label_states(PrefixBatch(tuple(teachers)), batch)
        asked = joined(tuple(own), where)
        assert asked is not None
        found = []
        for start, part in enumerate(states.split(size)):
            wanted = asked.part(slice(start * size, (start + 1) * size))
            whole = backbone.head(part).float().log_softmax(-1)
            is_filler = wanted.log_probabilities == -torch.inf
            values = whole.gather(-1, wanted.ids).clamp_min(LOWEST)
            rest = whole.scatter(-1, wanted.ids, -torch.inf).logsumexp(-1).clamp_min(LOWEST)
            found.append(Target(wanted.ids, values.masked_fill(is_filler, -torch.inf), rest))
    return _of_rows(together(found), where, len(rows))


def _of_rows(whole: Target, where: Tensor, count: int) -> list[Target]:
    whole, where = whole.to(torch.device("cpu")), where.cpu()
    return [whole.part((where == index).nonzero()[:, 0]) for index in range(count)]


def _likeliest(backbone: Backbone, states: Tensor, top_k: int, keep_mass: float) -> Target:
    whole = backbone.head(states).float().log_softmax(-1)
    size = whole.shape[-1]
    most = top_k if not keep_mass else max(top_k, min(MOST * top_k, size - 1))
    best = whole.topk(min(most, size), dim=-1)
    mass = best.values.exp()
    is_kept = mass.cumsum(-1) - mass < keep_mass  # those before it hold too little
    is_kept[:, :top_k] = True
    width = int(is_kept.sum(-1).max()) if len(is_kept) else min(top_k, size)
    ids = best.indices.where(is_kept, best.indices[:, :1])[:, :width]
    return Target(ids, best.values.masked_fill(~is_kept, -torch.inf)[:, :width])


def _asked(backbone: Backbone, text: SoftPrompt, query: chat.Text, config: DistillConfig) -> _Asked:
    """Return a query as it stands behind a text, with room for its answer.

    Raises:
        DataError: the text cannot stand before it, or there is no room.
    """
    encoding = chat.encoding_of(text)
    row = chat.encode_row(backbone, query, encoding)
    if len(row.input_ids) + config.answer_tokens > room(backbone, text):
        raise DataError(
            f"a query of {len(row.input_ids)} tokens leaves no room for {config.answer_tokens} of "
            f"an answer: behind {text.num_virtual_tokens} virtual tokens the model's context has "
            f"{room(backbone, text)}: shorten it, or lower --answer-tokens (eval: --max-new-tokens)"
        )
    return _Asked(row, chat.end_tokens(backbone, query, encoding))


def _answered(
    backbone: Backbone, prefix: Prefix, asked: Sequence[_Asked], config: DistillConfig
) -> list[Taught]:
    rows, ends = [one.row for one in asked], [one.ends for one in asked]
    answers = chat.answer_rows(backbone, prefix, rows, ends, max_new_tokens=config.answer_tokens)
    whole = [
        replace(row, input_ids=(*row.input_ids, *answer.ids), num_labels=len(answer.ids))
        for row, answer in zip(rows, answers, strict=True)
    ]
    targets = targets_of(backbone, prefix, whole, config.top_k, config.keep_mass)
    return [
        Taught(row.input_ids[-row.num_labels :], target)
        for row, target in zip(whole, targets, strict=True)
    ]


def _key(
    backbone: Backbone, text: SoftPrompt, asked: Sequence[_Asked], config: DistillConfig
) -> str:
    """Return what answers have in common: their teacher, the ids of the queries and of what ends an
    answer, and how they are kept.
    """
    parts = [
        json.dumps(backbone.fingerprint(), sort_keys=True),
        str(backbone.dtype),
        text.content_hash,
        json.dumps([[one.row.input_ids, one.ends] for one in asked]),
        f"{config.top_k} {config.keep_mass} {config.answer_tokens} {config.answer_batch}",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(file: Path, key: str, found: Sequence[Taught]) -> None:
    tensors = {
        "lengths": torch.tensor([len(one.ids) for one in found], device="cpu"),
        "answers": torch.tensor([token for one in found for token in one.ids], device="cpu"),
        "ids": torch.cat([one.target.ids for one in found]),
        "log_probabilities": torch.cat([one.target.log_probabilities for one in found]),
    }
    write_tensors(file, tensors, {KEY: key})


def _read(file: Path) -> tuple[str, list[Taught]]:
    """Return the key under which answers were kept, and the answers."""
    try:
        found = read_tensors(file)
        tensors, known = found.tensors, found.metadata[KEY]
    except (OSError, ValueError, LookupError) as error:
        raise ArtifactError(f"{file}: damaged ({error}); remove it, and it is made again") from None
    lengths = tensors["lengths"].tolist()
    answers = tensors["answers"].split(lengths)
    target = Target(tensors["ids"], tensors["log_probabilities"])
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return known, [
        Taught(tuple(ids.tolist()), target.part(slice(start, start + length)))
        for ids, start, length in zip(answers, starts, lengths, strict=True)
    ]
