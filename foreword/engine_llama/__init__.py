"""The serving engine over llama.cpp: the same requests, on a GGUF file, quantized or not.

In: requests of token ids. Out: their new ids, one step at a time, chosen by foreword's own sampling
from llama.cpp's logits. Knows no text, no HTTP and no training.
"""
