"""Options: every option of foreword, written once, with its type, default and help.

In: nothing. Out: frozen dataclasses that the library takes and that the command line is derived
from. A cross-check that fails names the option. Knows no torch, no files and no terminal.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin
from urllib.parse import urlsplit

from foreword.errors import InputError

Form = Literal["embeddings", "key_values"]
Initialization = Literal["text", "vocabulary", "random", "labels", "demonstrations"]
MethodName = Literal[
    "prompt-tuning",
    "prefix-tuning",
    "p-tuning",
    "residual",
    "prefix-projection",
    "context-tuning",
    "multitask",
]
Learn = Literal["all", "last"]
ObjectiveName = Literal["likelihood", "dpo", "dpo-norm"]
Opening = Literal["answer", "generation"]
DistillStart = Literal["first", "even", "attention", "vocabulary"]
FORMS: dict[MethodName, Form] = {
    "prompt-tuning": "embeddings",
    "prefix-tuning": "key_values",
    "p-tuning": "embeddings",
    "residual": "embeddings",
    "prefix-projection": "key_values",
    "context-tuning": "key_values",
    "multitask": "embeddings",
}
RATES: dict[MethodName, float] = {
    "prompt-tuning": 0.11,  # times the scale of the embedding table: see RELATIVE
    "prefix-tuning": 3e-2,
    "p-tuning": 3e-3,
    "residual": 5e-3,
    "prefix-projection": 1e-3,
    "context-tuning": 3e-2,
    "multitask": 5e-2,
}
NUM_VIRTUAL_TOKENS = 32
NUM_DEMONSTRATED = 96
"""P where the prompt starts from rows: room for several."""
RELATIVE: tuple[MethodName, ...] = ("prompt-tuning",)
"""Methods whose rate is relative: it is multiplied by the embedding table's root mean square."""
AUTO: Literal["auto"] = "auto"
Rate = float | Literal["auto"]

HOST = re.compile(r"[a-z0-9._-]+")  # of an origin, as browsers write it
MAX_SERVED_NAME = 200  # characters of a model's name in a request

LARGEST = {
    "": 2**31 - 1,  # of what has no entry of its own
    "bytes": 2**53,
    "image_pixels": 2**53,
    "seed": 2**62,
    "encoder_size": 2**20,
    "num_resamples": 10**6,
    "repetition_penalty": 10**6,
}
"""The largest number that an option takes; more of it can only be a slip."""
COLDEST = 1e-6
"""The lowest temperature above 0: logits divided by less are no numbers any more."""

TEMPLATE_FIELD = re.compile(r"\{(\w[\w .-]*)\}")
"""A {column} of --template: one name in braces. Any other brace, as in JSON, is plain text."""


BEFORE: dict[str, Any] = {"opening": "generation", "start_token": False}
"""How rows were encoded before there were options for it, where that is not their default."""


def option(default: Any, help: str) -> Any:
    """Declare one option: its default and the sentence that `--help` prints."""
    return field(default=default, metadata={"help": help})


def fact(default: Any, meaning: str) -> Any:
    """Declare a field that no command line sets: a prompt records it."""
    return field(default=default, metadata={"help": meaning, "is_fact": True})


def file_option(default: Any, help: str) -> Any:
    """Declare an option whose value is the text of a file, which the command line names."""
    return field(default=default, metadata={"help": help, "is_file": True})


def rate_option(default: Any, help: str) -> Any:
    """Declare an option that is a number or "auto", under two names."""
    metadata = {"help": help, "names": ("--learning-rate", "--lr"), "parser": rate}
    return field(default=default, metadata=metadata)


def rate(text: str) -> Rate:
    """Read a learning rate, or "auto".

    Raises:
        ValueError: neither.
    """
    return AUTO if text == AUTO else float(text)


def check_types(config: Any) -> None:
    """Refuse the first option of a config class whose value is not of its type, or is no number
    that anything can be done with: not finite, or larger than its `LARGEST`.

    Raises:
        InputError: names the option, what it takes, and what it got.
    """
    for one in fields(config):
        value, kinds = getattr(config, one.name), _kinds(one.type)
        name = f"--{one.name.replace('_', '-')}"
        if not any(_is_of(value, kind) for kind in kinds):
            taken = " or ".join(_named(kind) for kind in kinds if kind is not NoneType)
            raise InputError(f"{name} must be {taken}, got {value!r:.80}")
        largest = LARGEST.get(one.name, LARGEST["bytes" if "bytes" in one.name else ""])
        if isinstance(value, int | float) and abs(value) > largest:
            raise InputError(f"{name} must be at most {largest:,}, got {value!r:.80}")


def _kinds(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return is_number and (isinstance(value, int) or math.isfinite(value))
    return isinstance(value, kind)


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    names = {int: "an integer", float: "a finite number", str: "text", bool: "true or false"}
    return names[kind]


def _at_least_one(config: Any, *names: str) -> None:
    _check(config, names, lambda value: not value < 1, "be at least 1")


def checked_key(name: str, key: str | None) -> str | None:
    """Return a key without the line break that a variable may end in; None where there is none.

    Raises:
        InputError: an empty key, which would let everybody in, or one that lets nobody in.
    """
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise InputError(f"{name} is empty; give a key, or unset it to do without one")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{name}: expected printable ASCII, found what no header can carry")
    return key


def check_keys(config: "ServeConfig", api_key: str | None, admin_key: str | None) -> None:
    """Refuse keys that do not go with a server's options, or with each other.

    Raises:
        InputError: no key for loading at run time, or one that every client has.
    """
    if not config.runtime_loading:
        return
    if admin_key is None:
        raise InputError("--runtime-loading needs an admin key: set FOREWORD_ADMIN_KEY")
    if checked_key("the admin key", admin_key) == checked_key("the API key", api_key):
        raise InputError(
            "FOREWORD_ADMIN_KEY is FOREWORD_API_KEY, so that every client could load prompts: "
            "give another one"
        )


def checked_origin(origin: str) -> str:
    """Return the origin of a web page as browsers write it.

    Raises:
        InputError: not one origin.
    """
    try:
        parts = urlsplit(origin.strip().rstrip("/"))
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    has_more = parts.path or parts.query or parts.fragment or "@" in parts.netloc
    is_one = host is not None and (":" in host or HOST.fullmatch(host)) and port != 0
    if not parts.scheme or not host or not is_one or has_more or not origin.isascii():
        raise InputError(f"--allow-origin: expected one like https://app.example, got {origin!r}")
    host = f"[{host}]" if ":" in host else host
    is_default = port in (None, {"http": 80, "https": 443}.get(parts.scheme))
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{port}")


def _check_endpoint(url: str) -> None:
    """Refuse what is no address of an endpoint, and one that holds a key.

    Raises:
        InputError: says what is expected.
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_one = urlsplit(""), False
    plain = url.isascii() and url.isprintable() and " " not in url
    if not is_one or not plain or parts.query or parts.fragment:
        raise InputError(f"--questions-from: expected one like https://host/v1, got {url!r:.200}")
    if "@" in parts.netloc:
        raise InputError("--questions-from holds a key: give it as FOREWORD_QUESTIONS_KEY")


def _above_zero(config: Any, *names: str) -> None:
    _check(config, names, lambda value: value > 0, "be above 0")


def _not_negative(config: Any, *names: str) -> None:
    _check(config, names, lambda value: not value < 0, "not be negative")


def _check(config: Any, names: tuple[str, ...], is_right: Callable[[Any], bool], what: str) -> None:
    """Refuse the first option, of those that are set to a number, whose number is not right."""
    for name in names:
        value = getattr(config, name)
        if value not in (None, AUTO) and not is_right(value):
            raise InputError(f"--{name.replace('_', '-')} must {what}, got {value}")


@dataclass(frozen=True)
class DataConfig:
    """Where the columns of a data file are, and which answers of a conversation are learned.

    With nothing set, the columns decide: see docs/data.md. A column that is named here is read.
    """

    messages_column: str | None = option(
        None, "column that holds a conversation; default: messages, or conversations"
    )
    prompt_column: str | None = option(
        None, "column that holds the text before the answer; default: prompt"
    )
    completion_column: str | None = option(
        None, "column that holds the answer; default: completion"
    )
    template: str | None = option(
        None, "text before the answer, with {column} fields; needs --label-column"
    )
    label_column: str | None = option(None, "column that holds the answer of a --template")
    learn: Learn = option(
        "all", "which answers of a conversation are labels: all of them, or the last"
    )

    def __post_init__(self) -> None:
        check_types(self)
        if (self.template is None) != (self.label_column is None):
            raise InputError("--template and --label-column go together: give both or neither")
        if self.template is not None and not TEMPLATE_FIELD.search(self.template):
            raise InputError(f"--template must contain a {{column}}, got {self.template!r}")
        if self.template is not None and (named := self._named()):
            raise InputError(f"--template already says what is read: leave out {named[0]}")

    def _named(self) -> list[str]:
        names = ("messages_column", "prompt_column", "completion_column")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]


@dataclass(frozen=True)
class EncodingConfig:
    """How an example becomes token ids. Saved in the prompt: generation encodes as training did."""

    row_template: str | None = option(
        None,
        "text of a row around its {prompt}, instead of the chat template; for base models and "
        "for rows that should carry no system turn",
    )
    max_length: int | None = option(
        None, "longest row in tokens, virtual tokens not counted; default: the model's context"
    )
    truncate: bool = option(
        False,
        "shorten rows that are too long instead of refusing them: drop the oldest turns, then the "
        "start of the text; start token and system turn stay",
    )
    chat_template: str | None = file_option(
        None,
        "file with a chat template to use instead of the tokenizer's; it is saved in the prompt",
    )
    opening: Opening = option(
        "answer",
        "where an answer begins: right where the chat template writes one, past an empty block of "
        "thinking, or behind the template's generation prompt, for answers that hold reasoning",
    )
    start_token: bool = option(
        True, "begin a --row-template with the tokenizer's start token, unless it spells it out"
    )
    special_tokens: bool = option(
        False,
        "read special tokens that the text of a row spells out as these tokens; by default they "
        "are plain text",
    )
    date: str | None = option(
        None,
        "day that a chat template prints as today's, as 2026-01-31; default: the day on which the "
        "run begins; generation prints it, too",
    )

    held_text: str | None = fact(
        None, "what the virtual tokens hold in place of every row's beginning, as JSON"
    )
    held_tokens: int = fact(0, "how many tokens that is")
    held_hash: str | None = fact(None, "the hash of their ids")

    @classmethod
    def saved(cls, facts: Mapping[str, Any]) -> Self:
        """Return how rows are encoded that a prompt's facts describe; what they do not say is as it
        was before there were options for it, and as a model without a prompt is asked.

        Raises:
            InputError: what they say is no such option.
        """
        said = BEFORE | dict(facts)
        return cls(**{one.name: said[one.name] for one in fields(cls) if one.name in said})

    def __post_init__(self) -> None:
        check_types(self)
        if self.row_template is not None and "{prompt}" not in self.row_template:
            raise InputError(f"--row-template must contain {{prompt}}, got {self.row_template!r}")
        _not_negative(self, "held_tokens")
        if self.held_text is not None and not (self.held_tokens > 0 and self.held_hash):
            raise InputError("a held text needs the number of its tokens and their hash")
        if self.row_template is not None and self.held_text is not None:
            raise InputError("a prompt that holds a text takes no --row-template")
        if self.row_template is not None and self.chat_template is not None:
            raise InputError("--row-template and --chat-template exclude each other: give one")
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"--max-length must be at least 2 tokens, got {self.max_length}")
        if self.date is not None:
            try:
                datetime.fromisoformat(self.date)
            except (TypeError, ValueError):
                raise InputError(
                    f"--date must be a day, as 2026-01-31, got {self.date!r}"
                ) from None


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The resolved values are saved in the prompt."""

    method: MethodName | None = option(
        None,
        "how the prompt is learned, see docs/methods.md; default: context-tuning where nothing is "
        "said of the start and rows are short (at most 96 tokens), else prefix-tuning, or "
        "prompt-tuning with --form embeddings",
    )
    form: Form | None = option(
        None,
        "what is learned: 'embeddings' [P, H] or 'key_values' of every layer; default: what "
        "--method learns",
    )
    num_virtual_tokens: int | None = option(
        None,
        "P, the number of virtual tokens; a multiple of 16 serves best; default: 32, or 96 for "
        "context-tuning",
    )
    init: Initialization = option(
        "text",
        "start from --init-text, from sampled vocabulary rows, from noise at the table's scale, "
        "from the answers' own tokens where they are few, or from the first rows that fit",
    )
    init_text: str | None = option(
        None,
        "instruction that the prompt starts from; without it, vocabulary, and demonstrations for "
        "context-tuning",
    )
    task_column: str | None = option(
        None, "column that names each row's task, for --method multitask"
    )
    encoder: Literal["mlp", "lstm"] = option(
        "mlp", "network of p-tuning (Liu et al. 2021 have both; PEFT's default is mlp)"
    )
    encoder_size: int | None = option(
        None,
        "hidden size of the network of p-tuning, residual and prefix-projection; default: the "
        "model's hidden size, as PEFT's examples; half of it for residual, an own choice; 512 for "
        "prefix-projection, as Li and Liang 2021",
    )
    learning_rate: Rate | None = rate_option(
        None,
        "peak learning rate of AdamW, or auto: a short probe of four rates decides; default: 3e-2 "
        "for prefix-tuning and context-tuning, 5e-2 for multitask, 5e-3 for residual, 3e-3 for "
        "p-tuning, 1e-3 for prefix-projection, 0.11 times the embedding table's root mean square "
        "for prompt-tuning; docs/methods.md says what they rest on",
    )
    batch_size: int = option(16, "rows per optimizer step")
    micro_batch_size: int | None = option(
        None,
        "rows per forward pass; the gradient of a step is added up; default: the batch size, on a "
        "CPU fewer where rows are long",
    )
    num_steps: int | None = option(None, "optimizer steps; default: --num-epochs over the data")
    num_epochs: float = option(3.0, "passes over the data when --num-steps is not given")
    warmup_share: float = option(0.05, "share of the steps with a rising learning rate")
    weight_decay: float = option(0.0, "AdamW weight decay, decoupled")
    max_grad_norm: float = option(1.0, "gradient is scaled down to this norm; 0 switches it off")
    eval_every: int = option(20, "optimizer steps between validations; 0: only at the end")
    patience: int = option(
        0, "end the run after this many validations without a better one; 0: never"
    )
    save_every: int | None = option(
        None, "optimizer steps between writes of the training state; default: at every validation"
    )
    gradient_checkpointing: bool = option(
        False, "compute each layer again on the way back instead of keeping it: less memory"
    )
    compile_layers: bool = option(
        False, "compile the model's layers for training; pays where steps are many and rows alike"
    )
    seed: int = option(0, "seed of the order of rows and of the initialization")

    def __post_init__(self) -> None:
        check_types(self)
        _at_least_one(self, "num_virtual_tokens", "batch_size")
        self._check_method()
        _at_least_one(self, "micro_batch_size", "num_steps", "save_every", "encoder_size")
        _above_zero(self, "learning_rate", "num_epochs")
        if not 0 <= self.warmup_share < 1:
            raise InputError(f"--warmup-share must be in [0, 1), got {self.warmup_share}")
        if self.patience and not self.eval_every:
            raise InputError(
                f"--patience {self.patience} counts validations, and --eval-every 0 has one at the "
                "end only: leave one of them out"
            )
        if self.num_steps is not None and self.num_epochs != TrainConfig.num_epochs:
            raise InputError(
                "--num-steps and --num-epochs both say how long: leave one of them out"
            )
        if (self.micro_batch_size or 1) > self.batch_size:
            raise InputError(
                f"--micro-batch-size {self.micro_batch_size} is more than the rows of a step, "
                f"--batch-size {self.batch_size}"
            )
        _not_negative(self, "weight_decay", "max_grad_norm", "eval_every", "patience", "seed")

    def _check_method(self) -> None:
        if self.init != "text" and self.init_text:
            raise InputError(
                f"--init {self.init} and --init-text name two starts: leave one of them out"
            )
        if self.method is not None and self.form not in (None, FORMS[self.method]):
            raise InputError(
                f"--method {self.method} learns {FORMS[self.method]}, not --form {self.form}: "
                "leave --form out"
            )
        if self.task_column is not None and self.method != "multitask":
            raise InputError("--task-column is of --method multitask: give that, too")
        if self.encoder != "mlp" and self.method != "p-tuning":
            raise InputError(f"--encoder {self.encoder} is of --method p-tuning: give that, too")
        if self.encoder_size is not None and self.method not in (
            "p-tuning", "residual", "prefix-projection"
        ):  # fmt: skip
            raise InputError(
                "--encoder-size is of --method p-tuning, residual and prefix-projection: give one "
                "of them, or leave it out"
            )

    def resolved(self) -> "TrainConfig":
        """Return the configuration with every default that depends on another option filled in.

        A relative learning rate stays None: it depends on the base.
        """
        plain: MethodName = "prompt-tuning" if self.form == "embeddings" else "prefix-tuning"
        method = self.method or plain
        init = self.init
        if init == "text" and not self.init_text:
            init = "demonstrations" if method == "context-tuning" else "vocabulary"
        rate = self.learning_rate or (None if method in RELATIVE else RATES[method])
        num_virtual = self.num_virtual_tokens or _num_virtual(method)
        return replace(
            self, method=method, form=FORMS[method], learning_rate=rate, init=init,
            num_virtual_tokens=num_virtual,
        )  # fmt: skip

    @property
    def num_virtual(self) -> int:
        """P: as given, or the method's own."""
        return self.num_virtual_tokens or _num_virtual(self.method)

    @property
    def is_start_open(self) -> bool:
        """Whether nothing is said of what is learned and where it starts."""
        said = (self.method, self.form, self.init_text, self.num_virtual_tokens)
        return self.init == "text" and not any(said)


def _num_virtual(method: MethodName | None) -> int:
    return NUM_DEMONSTRATED if method == "context-tuning" else NUM_VIRTUAL_TOKENS


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a step of training lessens."""

    objective: ObjectiveName = option(
        "likelihood",
        "what is lessened: the loss of answers (likelihood), or that of pairs of a chosen and a "
        "rejected answer beside the model behind the prompt that training starts from (dpo; "
        "dpo-norm goes by a mean token)",
    )
    beta: float | None = option(
        None,
        "of dpo and dpo-norm: the less, the farther from that start; default: 0.1, and 5 for "
        "dpo-norm",
    )

    def __post_init__(self) -> None:
        check_types(self)
        _above_zero(self, "beta")
        if self.beta is not None and self.objective == "likelihood":
            raise InputError(f"--beta {self.beta:g} is of --objective dpo: give that, too")


@dataclass(frozen=True)
class DistillConfig:
    """How a text is distilled into fewer virtual tokens."""

    start: DistillStart | None = option(
        None,
        "keys and values that training starts from: those that the queries attend to most, with "
        "matched values (attention), the first P tokens of the text (first), P at even distances "
        "(even), or sampled vocabulary as a control; default: attention, and first on models whose "
        "keys cannot be moved",
    )
    top_k: int = option(20, "likeliest ids of the teacher that are kept at each token of an answer")
    keep_mass: float = option(
        0.9,
        "where --top-k ids hold less of the teacher's probability than this share, keep more, at "
        "most 16 times as many; 0: never",
    )
    answer_tokens: int = option(128, "longest answer of the teacher in tokens")
    answer_batch: int = option(16, "answers of the teacher that are generated at once")
    held_out: float = option(
        0.1, "share of the queries that is not trained on, to tell how it goes"
    )
    unrelated_share: float = option(
        0.05,
        "rows of unrelated text beside the queries, as a share of them, at which the prompt learns "
        "to change nothing",
    )
    on_policy: float = option(
        0.0,
        "the last share of the steps, in which the prompt learns from its own samples, scored by "
        "the teacher, instead of from the teacher's answers",
    )
    labels: float = option(
        0.0,
        "weight of a row's own answer, where it has one, in the loss; the teacher's has the rest",
    )
    questions: int = option(256, "without --data: questions that are asked about the text")
    question_tokens: int = option(64, "longest question in tokens")
    questions_from: str | None = option(
        None,
        "OpenAI-compatible endpoint that asks them in place of the base, as https://host/v1; its "
        "key is read from FOREWORD_QUESTIONS_KEY",
    )
    questions_model: str | None = option(None, "model of --questions-from")

    def __post_init__(self) -> None:
        check_types(self)
        _at_least_one(self, "top_k", "answer_tokens", "answer_batch")
        _at_least_one(self, "questions", "question_tokens")
        for name in ("keep_mass", "held_out", "unrelated_share", "on_policy", "labels"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(self, name)}"
                )
        if (self.questions_from is None) != (self.questions_model is None):
            raise InputError("--questions-from and --questions-model go together: give both")
        if self.questions_from is not None:
            _check_endpoint(self.questions_from)


@dataclass(frozen=True)
class SamplingConfig:
    """How an answer is drawn; greedy unless a temperature is given."""

    max_new_tokens: int = option(256, "longest answer in tokens")
    temperature: float = option(0.0, "0 is greedy; higher is more varied")
    top_p: float = option(1.0, "sample from the likeliest tokens with this share together")
    repetition_penalty: float = option(1.0, "above 1: repeat less; virtual tokens never count")

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature != 0 and self.temperature < COLDEST:
            raise InputError(
                f"--temperature must be 0 or at least {COLDEST}, got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p must be in (0, 1], got {self.top_p}")
        if self.repetition_penalty < COLDEST:
            raise InputError(
                f"--repetition-penalty must be at least {COLDEST}, got {self.repetition_penalty}"
            )

        if self.top_p != 1 and not self.temperature:
            raise InputError(
                f"--top-p {self.top_p} is for sampling, and --temperature 0 is greedy: give a "
                "--temperature above 0, or leave --top-p out"
            )

    def options(self) -> dict[str, Any]:
        """Return the arguments of `generate`."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p} if self.temperature else {}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": bool(self.temperature),
            "repetition_penalty": self.repetition_penalty,
            **drawn,
        }


@dataclass(frozen=True)
class EvalConfig:
    """What is asked of whoever answers held-out examples."""

    metrics: str = option(
        "auto",
        "'auto' looks at the answers; or some of loss, accuracy, macro_f1, exact, json, rouge_l, "
        "calls, with commas",
    )
    limit: int | None = option(None, "evaluate the first N examples")
    batch_size: int = option(32, "rows answered at once")
    max_new_tokens: int = option(128, "longest answer in tokens")

    def __post_init__(self) -> None:
        check_types(self)
        _at_least_one(self, "limit", "batch_size", "max_new_tokens")


@dataclass(frozen=True)
class ResamplingConfig:
    """How sure a score is: bootstrap intervals over the examples."""

    num_resamples: int = option(1000, "how often the examples are drawn anew for an interval")
    confidence: float = option(0.95, "share of the resamples inside an interval")
    seed: int = option(0, "seed of the resamples")

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_resamples < 1:
            raise InputError(f"--num-resamples must be at least 1, got {self.num_resamples}")
        if not 0 < self.confidence < 1:
            raise InputError(f"--confidence must be between 0 and 1, got {self.confidence}")
        if self.seed < 0:
            raise InputError(f"--seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class ServeConfig:
    """How a server takes requests on, and how many."""

    host: str = option("127.0.0.1", "address to listen at; the default is this machine only")
    port: int = option(8000, "port to listen at; 0 takes a free one")
    served_name: str | None = option(None, "name of the bare model; default: as it was loaded")
    max_batch: int = option(32, "requests that are answered at once")
    max_queue: int = option(128, "requests that may wait; more are told to come back (503)")
    max_length: int | None = option(
        None, "tokens of one request, virtual and new ones included; default: the model's context"
    )
    default_max_tokens: int = option(
        1024, "new tokens of a chat answer that names no limit; memory is kept for all of them"
    )
    max_choices: int = option(16, "answers to one HTTP request: its prompts times its n")
    max_body_bytes: int = option(2_000_000, "size of one HTTP request")
    max_media: int = option(16, "images and sounds of one HTTP request; 0 refuses them")
    image_pixels: int = option(20_000_000, "pixels of all images of one HTTP request")
    media_bytes: int = option(
        1_000_000_000, "memory for images and sounds of requests that wait, in bytes"
    )
    request_seconds: float = option(600.0, "after these a request is ended with an error (504)")
    client_seconds: float = option(
        30.0, "time that a client has to send its request whole, and to take what it is sent"
    )
    drain_seconds: float = option(30.0, "time that running requests get to end at SIGTERM")
    chunk_tokens: int = option(256, "tokens of prompts read between two decoding steps")
    batch_tokens: int | None = option(
        None,
        "tokens of all running requests that memory is kept for; default: 65536, or 16384 with "
        "--engine llama.cpp, which takes that memory at once",
    )
    cache_bytes: int = option(
        1_000_000_000, "memory for the states of prompts and conversations, in bytes"
    )
    runtime_loading: bool = option(
        False, "let the admin key load and unload prompts of the store while serving"
    )
    log_format: Literal["text", "json"] = option(
        "text", "how log lines are written: for people, or each one a JSON object"
    )

    def __post_init__(self) -> None:
        check_types(self)
        _at_least_one(
            self, "max_batch", "max_queue", "default_max_tokens", "max_choices", "chunk_tokens"
        )
        _above_zero(self, "request_seconds", "client_seconds", "max_body_bytes")
        for name in ("max_length", "batch_tokens"):  # one given and one new
            if (tokens := getattr(self, name)) is not None and tokens < 2:
                option_ = f"--{name.replace('_', '-')}"
                raise InputError(f"{option_} must be at least 2 tokens, got {tokens}")
        _not_negative(
            self, "drain_seconds", "cache_bytes", "max_media", "image_pixels", "media_bytes"
        )
        for name in ("host", "served_name"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise InputError(f"--{name.replace('_', '-')} is empty; give it, or leave it out")
        name = self.served_name or ""
        if len(name) > MAX_SERVED_NAME or not name.isprintable():
            raise InputError(
                f"--served-name must be at most {MAX_SERVED_NAME} printable characters, which "
                f"clients can send, got {name!r:.80}"
            )
        if not 0 <= self.port < 65536:
            raise InputError(f"--port must be from 0 to 65535, got {self.port}")
