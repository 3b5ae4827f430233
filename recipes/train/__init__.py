"""Training: a tokenizer, a target, and a draft distilled from it.

`python -m recipes.train --help`, in a checkout. Knows checkpoints and shapes of pearl_rt; no wheel has it,
and pearl_rt imports nothing of it.
"""
