"""Spark-Formalizer-X1-7B: house style of Lean 4 statements.

What class the checkpoint is, is not documented: one that transformers knows is loaded, any other is
refused with what is missing. The miniature is a qwen2, in its place.

    python examples/systems/spark_formalizer.py tiny
    python examples/systems/spark_formalizer.py iFlytek-Spark/Spark-Formalizer-X1-7B --output style
"""

from system import run

STATEMENTS = {
    "n + 0 = n": "theorem add_zero' (n : Nat) : n + 0 = n",
    "a + b = b + a": "theorem add_comm' (a b : Nat) : a + b = b + a",
    "0 * n = 0": "theorem zero_mul' (n : Nat) : 0 * n = 0",
    "n * 1 = n": "theorem mul_one' (n : Nat) : n * 1 = n",
}
ROWS = [{"prompt": said, "completion": statement} for said, statement in STATEMENTS.items()]

if __name__ == "__main__":
    run(__doc__, "qwen2", ROWS, "1 * n = n", num_virtual_tokens=16)
