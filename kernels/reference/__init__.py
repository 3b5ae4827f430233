"""The definition of every operator, in plain torch: the name and the signature of the launcher.

Written to be read and to be right, without haste; on any device that torch has.
Does not know Triton, and imports no kernel: a definition must not rest on what it judges.
Imports torch alone, or another definition.
Tests, bench and adapters (where kernels cannot run) may import it.
"""
