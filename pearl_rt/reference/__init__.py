"""The definitions in plain numpy: the round, noise, logits processors, judging, log-probabilities.

Begin to read with `round`. C++ and Triton are held against these files, bit for bit.
Knows no device and no engine; anything may import it, it imports errors only.
"""
