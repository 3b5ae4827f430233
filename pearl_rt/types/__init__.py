"""What goes through the package: a request's parameters, the native request, outputs and figures.

Knows no model, no device and no order of requests.
Everything above may import it; it imports errors and the reference (seeds).
"""
