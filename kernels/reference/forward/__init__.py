"""The definitions of the operators in kernels/forward: see kernels/reference."""
