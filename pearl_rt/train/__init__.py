"""Training: a tokenizer, a target, and a draft distilled from it. `python -m pearl_rt.train --help`."""
