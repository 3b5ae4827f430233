"""The definitions of the operators in kernels/head: see kernels/reference."""
