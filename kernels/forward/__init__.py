"""The kernels of a forward pass: which tokens it is fed, projections, norms, rotary positions, attention.

Knows shapes and dtypes of a Llama's layers, and the state of a running batch.
Does not know logits, sampling, verdicts, or which model runs.
Imports kernels/base alone.
pearl_rt/models, the steps of a device, bench and tests may import it.
"""
