"""Exports: a prompt for other engines, in files that they read without foreword.

In: a prompt, the base that it was trained on. Out: files of another engine, each with what tells
its base; or a refusal that names what would not be exact. Imports no training and no engine.
"""
