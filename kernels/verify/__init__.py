"""The kernels that judge windows of draft tokens and commit the verdict to the state of a batch.

`judge` is for ragged windows of any caller; `verify` judges and commits one round of the state.
Does not know models, KV caches or the order of a round's steps.
Imports kernels/base and kernels/sampling.
The steps of a device, adapters, bench and tests may import it.
"""
