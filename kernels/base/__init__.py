"""What every kernel and every launcher stands on: checks, registration, workspaces, a batch's state.

Also the mends of Triton's interpreter and the model shapes that pearl_rt ships for.
Knows no kernel, and not what a tensor means to one.
Imports nothing of the other rooms.
Every room of kernels/ may import it; so may pearl_rt, bench and tests.
"""
