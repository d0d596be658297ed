"""Limits: how much the serving engine takes on at once, in requests, tokens and bytes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLimits:
    """How much an engine takes on at once.

    Attributes:
        max_rows: requests in the batch.
        max_length: tokens of one request, virtual, given and new ones together; None is the model's
            context.
        max_slots: rows times capacity: the tokens that memory is made for.
        max_waiting: requests that may wait for a row.
        chunk_tokens: tokens of prompts that one step reads.
        max_state_bytes: states of prompts and conversations that are kept.
        max_media_bytes: images and sounds of requests that wait, as a processor returns them.
    """

    max_rows: int = 32
    max_length: int | None = None
    max_slots: int = 65536
    max_waiting: int = 1024
    chunk_tokens: int = 256
    max_state_bytes: int = 1 << 30
    max_media_bytes: int = 1 << 30
