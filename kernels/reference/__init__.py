"""The definition of every operator: the name and the signature of the launcher, on tensors of any device.

Of the forward pass and of penalties in plain torch; of sampling and judging those in pearl_rt, in numpy.
Does not know Triton, and imports no kernel: a definition must not rest on what it judges.
Imports torch, numpy, and the definitions in pearl_rt.
Tests, bench and adapters (where kernels cannot run) may import it.
"""
