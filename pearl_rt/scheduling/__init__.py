"""One request's life: queue, batch, the job with its answer as it grows, and its handle.

Knows lanes by their protocol only; not models and not devices.
The engine imports it.
"""
