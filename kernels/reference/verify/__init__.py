"""The definitions of the operators in kernels/verify: see kernels/reference."""
