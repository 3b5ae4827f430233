"""One request's life: queue, batch, runs, the answer as it grows, its handle, totals.

Knows lanes by their protocol only; not models and not devices.
The engine imports it.
"""
