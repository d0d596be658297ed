"""Distillation: a long text becomes a small prompt, taught by the model that reads the text.

In: a backbone, a text, queries. Out: events of training, whose last one holds the prompt, and how
far it says what the text would have said.
"""
