"""Model card: what a prompt's own facts say of it, as the README.md of a repository on the Hub.

In: a prompt as its files say it, and where it is to lie. Out: Markdown with a YAML header.
Says only what is in the facts; a base that is a path of this machine is not named.
"""

import os
from typing import Any

from foreword.hub_files import REPOSITORY
from foreword.prompt.peft_format import EMBEDDING_TYPES, ENCODER_TASK, OWN_TYPE
from foreword.prompt.stored_prompt import StoredPrompt

_FORMS = {"embeddings": "embeddings", "key_values": "keys and values of every layer"}

_USE = """## Use

```
foreword chat --prompt {repository}{model_option}
```

```python
from foreword import Backbone, SoftPrompt
from foreword.chat import answers, typed

backbone = Backbone.load({base!r}{revision})
prompt = SoftPrompt.load({repository!r})
[answer] = answers(backbone, prompt, [typed(backbone, prompt, "What you would type")])
print(answer.text)
```
"""

_WITH_PEFT = """
### With PEFT

```python
from peft import PeftModel
from transformers import {auto_class}

model = {auto_class}.from_pretrained({base!r}{revision})
model = PeftModel.from_pretrained(model, {repository!r})
```

Under some pairs of releases of PEFT and transformers its `generate` answers wrong behind a soft
prompt, without an exception; `foreword doctor` says what is known of the installed pair.
"""


def model_card(prompt: StoredPrompt, repository: str, license: str | None = None) -> str:
    """Return the card of a prompt.

    Args:
        prompt: as its files say it.
        repository: where it is to lie, as owner/name.
        license: as the Hub calls it; None: not said.
    """
    from huggingface_hub import ModelCardData

    base, config = prompt.facts.get("base") or {}, prompt.config
    is_stock = config.get("peft_type") != OWN_TYPE
    tags = ["foreword", "soft-prompt", _kind(prompt)] + (["peft"] if is_stock else [])
    header = ModelCardData(
        base_model=base.get("name") if is_hub_id(base.get("name")) else None,
        library_name="foreword",
        license=license,
        tags=tags,
    )
    revision = base.get("revision")
    names = {
        "repository": repository,
        "base": _base_in_code(base.get("name")),
        "revision": f", revision={_plain(revision)!r}" if revision else "",
    }
    use = _USE.format(**names, model_option="" if names["base"] != _UNKNOWN else " --model BASE")
    if is_stock:
        is_encoder = config.get("task_type") == ENCODER_TASK
        auto_class = "AutoModelForSeq2SeqLM" if is_encoder else "AutoModelForCausalLM"
        use += _WITH_PEFT.format(**names, auto_class=auto_class)
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(prompt).items())
    return (
        f"---\n{header.to_yaml()}\n---\n\n# {repository.partition('/')[2]}\n\n"
        f"A soft prompt of {prompt.num_virtual_tokens} virtual tokens, trained in front of a "
        "frozen language model. It holds no weights of the model.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n{use}"
    )


def is_hub_id(name: str | None) -> bool:
    """Return whether a base's name is one that others have too: a Hub id, and no path here."""
    return name is not None and bool(REPOSITORY.fullmatch(name)) and not _is_path(name)


def is_local(name: str | None) -> bool:
    """Return whether a base's name is a path, which says something only on this machine."""
    return name is not None and not is_hub_id(name) and _is_path(name)


def _is_path(name: str) -> bool:
    seems = os.path.isabs(name) or name.startswith((".", "~")) or "\\" in name
    return seems or name.lower().endswith(".gguf") or name.count("/") > 1 or os.path.exists(name)


_UNKNOWN = "BASE"


def _base_in_code(name: str | None) -> str:
    return _UNKNOWN if name is None or is_local(name) else _plain(name)


def _kind(prompt: StoredPrompt) -> str:
    """Return the tag of a prompt's kind."""
    is_embeddings = prompt.config.get("peft_type") in EMBEDDING_TYPES or prompt.form == "embeddings"
    return "prompt-tuning" if is_embeddings else "prefix-tuning"


def _facts(prompt: StoredPrompt) -> dict[str, str]:
    """Return what is known of a prompt, each fact with its name."""
    facts = prompt.facts
    base, training = facts.get("base") or {}, facts.get("training") or {}
    metrics = facts.get("metrics") or {}
    held_out = metrics.get("validation") or {}
    name = base.get("name")
    size = f"{prompt.num_parameters:,} numbers, {prompt.num_bytes:,} bytes"
    found = {
        "base model": "a local model" if is_local(name) else name or "not recorded",
        "revision of the base": base.get("revision"),
        "virtual tokens": prompt.num_virtual_tokens,
        "form": f"{_FORMS[prompt.form]} ({prompt.config.get('peft_type')})",
        "size": size,
        "method": facts.get("method"),
        "objective": training.get("objective"),
        "rows trained on": training.get("num_rows"),
        "step": metrics.get("step"),
        "training loss": _number(metrics.get("training_loss")),
        "validation loss": _number(held_out.get("loss")),
        "exact answers in validation": _number(held_out.get("exact"), "{:.1%}"),
        "mean reward in validation": _number(held_out.get("reward")),
        "preferred answers ahead in validation": _number(held_out.get("preferred"), "{:.1%}"),
        "created": facts.get("created"),
        "content hash": prompt.content_hash,
    }
    return {name: _plain(value) for name, value in found.items() if value is not None}


def _number(value: Any, form: str = "{:.4f}") -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return form.format(value) if is_number else None


def _plain(value: Any) -> str:
    """Return a value as text that stays in its cell and is no markup."""
    text = " ".join(str(value)[:300].split())
    for mark, harmless in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("|", "&#124;"),
        ("`", "'"),
        ("[", "&#91;"),
    ):
        text = text.replace(mark, harmless)
    return text
