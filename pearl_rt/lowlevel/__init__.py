"""The low-level engine: separate calls on one struct of tensors, and a round for other runtimes' graphs.

Knows the device room; not the scheduler and not the server.
The back ends and the engine import it.
"""
