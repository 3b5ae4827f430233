"""Runs kernels that Triton compiled to PTX, on the host: docs/compiled_kernels.md."""
