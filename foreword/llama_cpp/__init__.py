"""llama.cpp: the library itself, by its C interface, and what its caches hold.

In: a GGUF file, token ids, embeddings, states of sequences. Out: logits, and states as the library
writes them. Knows no prompt, no text and no request; the wheel is an extra of its own.
"""
