"""Chat templates that know tools, one of each format of calls, for the tiny tokenizer.

Written for the tests after the forms that the families' own templates have.
"""

_TURNS = (
    "{{ '<|im_start|>' ~ m.role ~ '\n' }}{{ m.content or '' }}{% if m.tool_calls %}CALLS{% endif %}"
    "{{ '<|im_end|>\n' }}"
)
_WHOLE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{{ '\n' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}TURNS{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _template(calls: str) -> str:
    return _WHOLE.replace("TURNS", _TURNS.replace("CALLS", calls))


HERMES = _template(
    "{% for c in m.tool_calls %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' ~ c.function.name ~ \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
)
"""As Hermes' and Qwen's: each call in marks of its own."""

LLAMA = _template(
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at once') }}{% endif %}"
    "{% set c = m.tool_calls[0].function %}"
    "{{ '{\"name\": \"' ~ c.name ~ '\", \"parameters\": ' }}{{ c.arguments | tojson }}{{ '}' }}"
)
"""As Llama 3's: one call, which is the whole answer, without a mark."""

MISTRAL = _template(
    "{{ '<|bos|>[' }}{% for c in m.tool_calls %}"
    "{% if c.id is not defined or c.id | length != 9 %}"
    "{{ raise_exception('ids of 9 letters and digits') }}{% endif %}"
    '{{ \'{"name": "\' ~ c.function.name ~ \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson }}{{ ', \"id\": \"' ~ c.id ~ '\"}' }}"
    "{{ ', ' if not loop.last }}{% endfor %}{{ ']' }}"
)
"""As Mistral's: a list behind a special token, each call with its id."""

NAMED = _template(
    "{% for c in m.tool_calls %}{{ '[TOOL_CALLS]' ~ c.function.name ~ '[ARGS]' }}"
    "{{ c.function.arguments | tojson }}{% endfor %}"
)
"""As Mistral's later ones: the name as plain text, and JSON for the arguments alone."""

MARKS = _template(
    "{% for c in m.tool_calls %}{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
    "{{ '<tool_call>\n<function=' ~ c.function.name ~ '>' }}"
    "{% for k, v in c.function.arguments.items() %}{{ '\n<parameter=' ~ k ~ '>\n' }}"
    "{{ v | tojson if v is mapping or (v is sequence and v is not string) else v | string }}"
    "{{ '\n</parameter>' }}{% endfor %}{{ '\n</function>\n</tool_call>' }}{% endfor %}"
)
"""As Qwen3-Coder's: each argument in marks of its own, numbers and words as Python writes them."""

PAIRS = _template(
    "{% for c in m.tool_calls %}{{ '\n<tool_call>' ~ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}{{ '\n<arg_key>' ~ k ~ '</arg_key>' }}"
    "{{ '\n<arg_value>' ~ (v if v is string else v | tojson) ~ '</arg_value>' }}{% endfor %}"
    "{{ '\n</tool_call>' }}{% endfor %}"
)
"""As GLM's: name and value of each argument in marks, JSON where it is no text."""

LISTED = _template(
    "{{ '<calls>\n' }}{% for c in m.tool_calls %}"
    "{{ '<invoke name=\"' ~ c.function.name ~ '\">\n' }}"
    "{% for k, v in c.function.arguments.items() %}{{ '<parameter name=\"' ~ k ~ '\">' }}"
    "{{ v if v is string else v | tojson }}{{ '</parameter>\n' }}{% endfor %}"
    "{{ '</invoke>\n' }}{% endfor %}{{ '</calls>' }}"
)
"""As MiniMax': all calls in one pair of marks."""

SILENT = _template("")
"""Shows tools, and writes no calls."""

TEMPLATES = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "named": NAMED}
TEMPLATES |= {"marks": MARKS, "pairs": PAIRS, "listed": LISTED}

RESPONSE = {
    "start_anchor": "<|im_start|>assistant\n",
    "defaults": {"role": "assistant"},
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>"},
        "content": {},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}
"""How answers to `HERMES` are read, as a tokenizer says it to transformers."""
