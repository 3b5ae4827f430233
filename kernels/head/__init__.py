"""The kernels of a head that drafts from its target's rows: what its layer reads, and rows that are kept.

Knows shapes and dtypes; not sequences' states, logits or which layers are read.
Imports kernels/base, and the tables and configurations of kernels/forward.
pearl_rt/model, bench and tests may import it.
"""
