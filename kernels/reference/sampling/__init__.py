"""The definitions of the operators in kernels/sampling: see kernels/reference."""
