"""lm-evaluation-harness: prompts as a model of it, registered there as "foreword".

In: the harness's requests, texts. Out: log-likelihoods and generations, each request behind the
soft prompt. The bare model scores as the harness's own "hf" does. Needs the extra `lm-eval`;
importing this module registers the model, since the harness looks for none by itself. Knows no
task.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data import encoding
from foreword.data.encoding import Row
from foreword.data.examples import Example
from foreword.errors import DependencyError, InputError, UnsupportedError
from foreword.evaluation.losses import check_losses
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.loss import score_states

try:
    import lm_eval.models  # noqa: F401  a registry that is not empty would not load these itself
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise DependencyError("the harness is an extra: pip install 'foreword[lm-eval]'") from error

log = logging.getLogger("foreword")
# No special tokens but those that are spelled out.
AS_IS = EncodingConfig(row_template="{prompt}", start_token=False, special_tokens=True)
CONTEXT = 1 << 30  # of a model whose configuration names none
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")

Scored = tuple[tuple[str, str], list[int], list[int]]


@register_model("foreword")
class ForewordLM(TemplateLM):
    """A frozen model behind a soft prompt.

    Args:
        base: what `Backbone.load` takes; default: the prompt's own base.
        prompt: directory of a soft prompt; None: the bare model.
        encoding: "raw": texts as the harness gives them. "own": each context as the prompt's
            training rows were, which for tasks without examples is what it was trained on.
        batch_size: rows at once.
        max_gen_toks: longest generation where a task does not say.
        dtype: "auto", or the name of one.
        device: as in `Backbone.load`; a CUDA device that is not there is "auto".
        max_batch_size: not used; the harness passes it to every model.

    Raises:
        InputError: neither base nor prompt, or an argument that is not one of these.
        MismatchError: a prompt of another base, or encoding=own behind another chat template.
        UnsupportedError: an encoder-decoder.
    """

    def __init__(
        self,
        base: str | None = None,
        prompt: str | None = None,
        encoding: str = "raw",
        batch_size: int | str = 1,
        max_gen_toks: int = 256,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise InputError(
                f"the model foreword takes base, prompt, encoding, batch_size, max_gen_toks, dtype "
                f"and device, not {', '.join(unknown)}"
            )
        if encoding not in ("raw", "own"):
            raise InputError(f"encoding must be raw or own, got {encoding!r}")
        batch_size = _count("batch_size", batch_size, "rows")
        max_gen_toks = _count("max_gen_toks", max_gen_toks, "tokens")
        precision = dtype if dtype == "auto" else getattr(torch, dtype, None)
        if not isinstance(precision, str | torch.dtype):
            raise InputError(f"dtype must be auto or one of torch's, as float32, got {dtype!r}")
        self.prompt = SoftPrompt.load(prompt) if prompt else None
        known = (self.prompt.facts.get("base") or {}) if self.prompt else {}
        name = base or known.get("name")
        if not name:
            raise InputError("which model? give base=MODEL; the prompt does not name its base")
        revision = None if base else known.get("revision")
        # The harness's command line names the first CUDA device unless it is told otherwise.
        is_there = device and (torch.cuda.is_available() or not device.startswith("cuda"))
        self.backbone = Backbone.load(
            name,
            dtype=precision,
            device=(device if is_there else None) or "auto",
            revision=revision,
        )
        if self.backbone.reads_apart:
            raise UnsupportedError(
                f"{name}: an encoder-decoder; only decoders take the harness's requests here"
            )
        self.prefix = self.backbone.compile(self.prompt) if self.prompt else None
        self.tokenizer = self.backbone.tokenizer
        if encoding == "own":
            chat.check_template(self.backbone, self.prompt)
        self.config = chat.encoding_of(self.prompt) if encoding == "own" else None
        self.is_spaced: bool | None = chat.saved_encoding(self.prompt).get("is_spaced")
        self.batch_size, self.max_gen_toks = batch_size, max_gen_toks

    @property
    def room(self) -> int:
        """Real tokens that fit behind the prompt."""
        num_virtual = self.prompt.num_virtual_tokens if self.prompt else 0
        return (self.backbone.capabilities.context_length or CONTEXT) - num_virtual

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text without context."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in the harness's cache of requests."""
        return str(self.backbone.name).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the model's own template writes it."""
        if self.config is not None:
            raise InputError("--apply_chat_template: encoding=own already writes rows; use raw")
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text; one that begins with the start token gets no second."""
        start = self.tokenizer.decode(self.prefix_token_id)
        is_plain = add_special_tokens is not False and not string.startswith(start)
        config = EncodingConfig() if is_plain else AS_IS
        return chat.encode(self.backbone, string, config)[0]

    def _asked(self, context: str) -> chat.Text:
        return chat.typed(self.backbone, self.prompt, context)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.config is None:
            return super()._encode_pair(context, continuation)  # type: ignore[no-any-return]
        asked = self._asked(context)
        if self.is_spaced is False:  # the harness puts a space between any question and answer
            continuation = continuation.removeprefix(" ") or continuation
        example = Example(asked if isinstance(asked, str) else tuple(asked), continuation)
        whole = encoding.encode(
            example,
            self.tokenizer,
            replace(self.config, max_length=None, truncate=False),
            CONTEXT,
        )
        num_closing = len(encoding.end_ids(asked, self.tokenizer, self.config))
        cut = len(whole.input_ids) - whole.num_labels
        return list(whole.input_ids[:cut]), list(whole.input_ids[cut:-num_closing])

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        rows = [self._row(context, labels) for _, context, labels in requests]
        found: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index].input_ids))
        for start in range(0, len(rows), self.batch_size):
            part = order[start : start + self.batch_size]
            scored = self._score([rows[index] for index in part])
            found |= dict(zip(part, scored, strict=True))
        results = [found[index] for index in range(len(rows))]
        for (pair, _, _), result in zip(requests, results, strict=True):
            if pair is not None:  # a window of a longer text is no request of its own
                self.cache_hook.add_partial("loglikelihood", pair, result)
        return results

    def _row(self, context: list[int], labels: list[int]) -> Row:
        """Return a request as a row, cut at its start where it does not fit; its last token is not
        read, and may stand behind the context.
        """
        if not labels:
            raise InputError("a request has no token to score; every continuation needs one")
        if len(labels) > self.room:
            raise InputError(f"a continuation of {len(labels)} tokens; at most {self.room} fit")
        ids, limit = [*context, *labels], self.room + 1
        if len(ids) > limit:
            log.warning("cutting the start of a context: %d tokens, %d fit", len(ids), limit)
        row = Row(tuple(ids[-limit:]), len(labels), "request")
        self.backbone.check_row(row)
        return row

    def _score(self, rows: list[Row]) -> list[tuple[float, bool]]:
        read = [list(row.input_ids[:-1]) for row in rows]
        ids, mask = (
            one.to(self.backbone.device) for one in chat.left_padded(read, self.backbone.padding_id)
        )
        results = []
        with torch.no_grad():
            prefixes = self.backbone.batch_of(self.prefix, len(rows))
            hidden = self.backbone.hidden(prefixes, ids, mask)
            for row, states in zip(rows, hidden, strict=True):
                labels = torch.tensor(row.input_ids[-row.num_labels :], device=states.device)
                losses, is_best = score_states(self.backbone, states[-row.num_labels :], labels)
                results.append((-losses.double().sum().item(), bool(is_best.all())))
        check_losses(self.backbone, [found for found, _ in results], [row.source for row in rows])
        return results

    def loglikelihood_rolling(
        self, requests: "list[Instance]", disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of whole texts, in windows that each follow the prompt."""
        results = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.room,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(found for found, _ in self._loglikelihood_tokens(pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            results.append(total)
        return results

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Return generations, each cut before the first of its stop strings."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            context, asked = request.args
            ends = self._stop_ids(context, [])  # a text and a conversation may end differently
            groups.setdefault(f"{asked!r} {ends}", []).append(index)
        found: dict[int, str] = {}
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                part = group[start : start + self.batch_size]
                contexts = [requests[index].args[0] for index in part]
                said = self._generate(contexts, dict(requests[part[0]].args[1]))
                found |= dict(zip(part, said, strict=True))
        results = [found[index] for index in range(len(requests))]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, result)
        return results

    def _generate(self, contexts: list[str], options: dict[str, Any]) -> Iterator[str]:
        until = options.pop("until", None) or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        most = options.pop("max_gen_toks", options.pop("max_new_tokens", self.max_gen_toks))
        num_new = _count("max_gen_toks", most, "tokens")
        options.setdefault("do_sample", _temperature(options.get("temperature")) > 0)
        if not options["do_sample"]:
            options = {name: value for name, value in options.items() if name not in SAMPLING}
        rows = [Row(tuple(self._context(context, num_new)), 1, "request") for context in contexts]
        for row in rows:
            self.backbone.check_row(row)
        stop_ids = self._stop_ids(contexts[0], stops)
        if stops:
            options["stopping_criteria"] = StoppingCriteriaList([_Until(self.tokenizer, stops)])
        answers = chat.answer_rows(
            self.backbone,
            self.prefix,
            rows,
            [stop_ids] * len(rows),
            max_new_tokens=num_new,
            **options,
        )
        for answer in answers:
            text = answer.text
            for stop in stops:
                text = text.split(stop)[0]
            yield text

    def _stop_ids(self, context: str, stops: list[str]) -> list[int]:
        """Return the ids that end a generation, stop strings that are special tokens included."""
        config = self.config or EncodingConfig()
        asked = self._asked(context) if self.config else context
        special = set(self.tokenizer.all_special_tokens)
        named = [self.tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in special]
        return [*chat.end_tokens(self.backbone, asked, config), *named]

    def _context(self, context: str, num_new: int) -> list[int]:
        if self.config is None:
            ids = self.tok_encode(context)
        else:
            ids, _ = chat.encode(self.backbone, self._asked(context), self.config)
        if not ids:
            raise InputError("a request asks to go on from an empty text: give each a context")
        limit = self.room - num_new
        if limit < 1:
            raise InputError(f"max_gen_toks={num_new} leaves no room; at most {self.room - 1} fit")
        if len(ids) > limit:
            log.warning("cutting the start of a context: %d tokens, %d fit", len(ids), limit)
        return ids[-limit:]


def _count(name: str, value: Any, of: str) -> int:
    """Return an argument as a number of something, one or more.

    Raises:
        InputError: it is none.
    """
    written = str(value)
    if not (written.isascii() and written.isdigit()) or int(written) < 1:
        raise InputError(f"{name} must be a number of {of}, got {value!r}")
    return int(written)


def _temperature(value: Any) -> float:
    """Return a temperature; none is 0.

    Raises:
        InputError: no number.
    """
    try:
        return float(value or 0)
    except (TypeError, ValueError):
        raise InputError(f"temperature must be a number, got {value!r}") from None


class _Until(StoppingCriteria):
    """Stops each row whose new text holds a stop string."""

    def __init__(self, tokenizer: Any, stops: list[str]):
        self.tokenizer, self.stops = tokenizer, stops
        self.start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.start is None:
            self.start = input_ids.shape[1] - 1  # the first call sees the first new token
        texts = [
            encoding.decode(row, self.tokenizer) for row in input_ids[:, self.start :].tolist()
        ]
        is_done = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(is_done, device=input_ids.device)
