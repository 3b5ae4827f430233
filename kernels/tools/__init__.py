"""What looks at kernels from outside: ahead-of-time compilation, and the report of what the compiler makes.

`python -m pearl_rt.kernels.tools.report` runs without a GPU.
Does not know how a kernel computes; nothing here runs in an engine.
Imports every room of kernels/.
Tests and bench may import it; no kernel may.
"""
