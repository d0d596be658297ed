"""Model loading: from a name, a directory, a Hub id or a GGUF file to a model in memory.

In: what a user calls a model. Out: transformers' model, tokenizer and processor. Runs no code from
a checkpoint and knows no prompt.
"""
