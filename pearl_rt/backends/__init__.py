"""Back ends: native CPU lanes, CUDA lanes, kernels in the interpreter; which one runs a request.

Knows models, devices and programs; not prompts, texts or queues.
The engine imports it.
"""
