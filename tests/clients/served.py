"""Serve a tiny model with a prompt `a`, called `gpt-4o-mini` too, until the standard input ends."""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]


def main() -> None:
    """Print the address, then wait."""
    import tiny_models
    from serving import END, VOCAB, config, fill, running
    from tiny_tokenizer import tiny_tokenizer
    from tool_templates import HERMES

    from foreword import Backbone
    from foreword.prompt.store import Store
    from foreword.server.server import Server

    model = tiny_models.build(
        "llama", vocab_size=VOCAB, eos_token_id=END, max_position_embeddings=8192
    )
    backbone = Backbone(model, tiny_tokenizer(chat_template=HERMES), name="tiny")
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "store")
        fill(store, backbone, Path(directory), "a")
        store.alias("gpt-4o-mini", "a")
        with running(Server(backbone, store, config(default_max_tokens=300))) as address:
            print(address, flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
