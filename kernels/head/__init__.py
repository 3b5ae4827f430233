"""The kernels of a head that drafts from its target's rows.

`head_input` makes what its layer reads; `keep_rows` keeps rows for a later pass.
Knows shapes and dtypes; not sequences' states, logits or which layers are read.
Imports kernels/base, and the tables and configurations of kernels/forward.
pearl_rt/model, bench and tests may import it.
"""
