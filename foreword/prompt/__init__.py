"""Soft prompts and their files: learned values, the prefix they compile to, the store of prompts.

In: tensors, or a directory in PEFT's format. Out: `SoftPrompt`, `Prefix` and the cache states that
both hold; named, versioned prompts on disk. Knows no model, no tokenizer and no text.
"""
