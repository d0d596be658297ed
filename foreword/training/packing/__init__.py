"""Sequence packing: the rows of a micro-batch in one sequence, without padding.

In: a batch behind one prefix. Out: hidden states before its labels. Proves itself on the model at
hand, which else trains on padded batches. Knows no loss and no optimizer.
"""
