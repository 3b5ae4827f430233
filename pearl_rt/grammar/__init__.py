"""Answers that have a form: schemas and grammars, compiled by llguidance, and the state of one answer.

Knows a tokenizer by the bytes of its tokens. Nothing here knows a model, a lane or a server; lanes call a
Matcher (csrc/core/token_mask.h) for each position whose tokens the form limits.
"""
