"""What the tests of pages share: a tiny model on disk in the place of the embedded one."""

from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny model that reads rows of a page, byte by byte."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        "llama",
        dtype=torch.float32,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=4096,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
