"""The kernels that make tokens of logits: noise, penalties, filters, sampling, log-probabilities.

Each works on rows of logits, one token or one threshold per row.
Does not know windows of draft tokens, verdicts or models.
Imports kernels/base alone.
kernels/verify, the steps of a device, adapters, bench and tests may import it.
"""
