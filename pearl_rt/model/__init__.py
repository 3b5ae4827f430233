"""The Llama family on the Triton kernels: weights, a forward pass, attention back ends, KV pages.

Knows tensors and launches; not requests, rounds or streams.
The device room imports it.
"""
