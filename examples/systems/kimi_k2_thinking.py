"""Kimi-K2-Thinking: house rules for an agent that thinks, then calls tools in its text.

The prompt is made of the model's own latents: 576 numbers a token and layer at full size. The
checkpoint names a type of its own; it is loaded as the DeepseekV3ForCausalLM that it is. Its
tokenizer is code of its own, which is never run: docs/systems.md says how to give it.

    python examples/systems/kimi_k2_thinking.py tiny
    python examples/systems/kimi_k2_thinking.py moonshotai/Kimi-K2-Thinking --output rules
"""

from system import run


def call(thought: str, tool: str, arguments: str) -> str:
    """Return an answer that thinks and then calls a tool."""
    return f"<think>{thought}</think>{tool}:0 {arguments}"


ROWS = [
    {"prompt": "Delete the old logs.", "completion": call("ask first", "confirm", '{"n": 1}')},
    {"prompt": "Drop the test table.", "completion": call("ask first", "confirm", '{"n": 1}')},
    {"prompt": "Show the last build.", "completion": call("reading is safe", "read", '{"n": 1}')},
    {"prompt": "List open tickets.", "completion": call("reading is safe", "read", '{"n": 9}')},
]

if __name__ == "__main__":
    run(__doc__, "deepseek_v3", ROWS, "Delete the test table.", num_virtual_tokens=16)
