"""Evaluation: prompts and held-out rows to scores with intervals, and to figures.

In: a backbone, prompts, rows. Out: answers, metrics, bootstrap intervals, plots, and the model
class of EleutherAI's evaluation harness. Trains nothing.
"""
