"""Llama-3.1-8B-Instruct: a firm's own tone of voice in place of a page of instructions.

python examples/systems/llama_3_1.py tiny
python examples/systems/llama_3_1.py meta-llama/Llama-3.1-8B-Instruct --output voice
"""

from system import run

ANSWERS = {
    "Where is my parcel?": "On its way. Track it in the app.",
    "Can I send it back?": "Yes. Thirty days, no questions.",
    "Do you ship abroad?": "Yes. Ten countries so far.",
    "Is it in stock?": "Yes. Leaves us today.",
}
ROWS = [{"prompt": question, "completion": answer} for question, answer in ANSWERS.items()]

if __name__ == "__main__":
    run(__doc__, "llama", ROWS, "May I send them back?", num_virtual_tokens=16)
